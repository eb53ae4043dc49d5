exception Refused { 1: string why }

service Echo {
    string echo(1: string text),
    string refuse(1: string why) throws (1: Refused refused),
    oneway void note(1: string text),
    i32 notes(),
    i64 thread(),
    i32 meet(1: i32 count),
    i32 held(),
    i32 hold(1: i32 number),
    oneway void release(),
    i32 fail()
}
