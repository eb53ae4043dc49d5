/* A closed-loop load generator for framed RPC that checks every answer.
 *
 *     rpc_load [--deadline MS] PROTOCOL HOST PORT CONNECTIONS DEPTH PAYLOAD WARM_UP SECONDS [PID…]
 *
 * PROTOCOL is msgpack or thrift. Each of CONNECTIONS keeps DEPTH requests of PAYLOAD bytes in flight; an
 * answer is followed by the next request at once. One JSON object is printed: what was answered within
 * SECONDS, latencies, and the CPU time in that window of this process and of each PID.
 *
 * The window opens WARM_UP seconds after every connection has had an answer. It stays open longer than SECONDS
 * until there have been as many answers as there are requests in flight. Connections are closed after it: what opening and closing them costs is in no figure. That is also why the CPU clocks are read
 * here, at the window's edges, and not by who starts this program.
 *
 * Each payload begins with the number of its connection and its id. An answer that is not, byte for byte,
 * that of a request in flight on its connection ends the program with 1, and so does a request that is never
 * answered. rpc_instance.c shows the messages.
 *
 * With --deadline each request also says that it may take MS milliseconds, and the instance's echo tells what
 * it was told. That must be less, and more than nothing: someone on the way has to keep the deadline and pass
 * on what is left of it, or what is measured is not what that costs.
 */
#define _GNU_SOURCE
#include "rpc_channel.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <time.h>

#define SECOND UINT64_C(1000000000)
#define PATIENCE (20 * SECOND) /* for all first answers, and for the last ones */

enum {
    EVENTS = 1024,
    STAMP = 8,         /* bytes of a payload that are its own */
    MAX_PART = 64,     /* what stands before or after an id */
    NUMBER = 8,        /* bytes of a deadline: a double, which tells the least time spent */
    MAX_WIDTH = 5,     /* of an id */
    SUB_BUCKETS = 128, /* per power of two: a latency is known to 0.8 % */
    MAX_PIDS = 64,
    WAIT_MS = 10,
};

struct part {
    uint8_t bytes[MAX_PART];
    size_t size;
};

/* A message is: length, head, id, middle, payload, end. */
struct form {
    struct part head;
    struct part middle;
    size_t deadline_at; /* in the middle; 0: there is none */
};

struct request {
    uint32_t id;
    uint64_t started; /* 0: none in flight */
};

struct connection {
    struct channel channel;
    uint32_t number;
    uint32_t next_id;
    bool answered;
    struct request *requests; /* `slots` of them; the place of a request is its id modulo that */
};

enum phase { OPENING, WARMING, MEASURING, DRAINING };

static struct {
    bool thrift;
    const char *host;
    const char *port;
    uint32_t connections;
    uint32_t depth;
    size_t payload;
    double deadline; /* in milliseconds; 0: requests say nothing of one */
    uint64_t warm_up;
    uint64_t window;
    int clocks;
    clockid_t clock[1 + MAX_PIDS]; /* this process first */
} options;

static struct {
    struct form request;
    struct form answer;
    uint8_t *filling; /* a payload less its stamp, then the end of the message */
    size_t filling_size;
    uint8_t *batch; /* where requests are written, to be sent from */
} messages;

static struct {
    enum phase phase;
    uint64_t since;      /* when the phase began */
    uint32_t unanswered; /* connections without a first answer */
    uint64_t in_flight;
    uint64_t answers; /* in the window, as all below */
    uint64_t latencies[64 * SUB_BUCKETS];
    uint64_t recorded;
    double cpu[1 + MAX_PIDS];
    double seconds;
} run;

static struct connection *connections;
static uint32_t slots;
static int epoll;

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * SECOND + (uint64_t)time.tv_nsec;
}

static double cpu_seconds(clockid_t clock)
{
    struct timespec time;
    if (clock_gettime(clock, &time) < 0)
        fail("a process whose CPU time is measured has ended");
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* ---- Latencies: buckets grow with the value, so that each is known to the same share of itself. */

static void record(uint64_t nanoseconds)
{
    int shift = 63 - __builtin_clzll(nanoseconds | SUB_BUCKETS) - __builtin_ctz(SUB_BUCKETS);
    run.latencies[(uint64_t)shift * SUB_BUCKETS + (nanoseconds >> shift)]++;
    run.recorded++;
}

/* The middle of the bucket in which the share's value lies, in microseconds. */
static double percentile(double share)
{
    if (run.recorded == 0)
        return 0;
    uint64_t wanted = (uint64_t)(share * (double)run.recorded);
    uint64_t index = 0;
    for (uint64_t seen = run.latencies[0]; seen <= wanted && index + 1 < 64 * SUB_BUCKETS;)
        seen += run.latencies[++index];
    uint64_t shift = index < 2 * SUB_BUCKETS ? 0 : index / SUB_BUCKETS - 1;
    return ((double)(index - shift * SUB_BUCKETS) + 0.5) * (double)(UINT64_C(1) << shift) / 1000;
}

/* ---- Messages */

static struct part part(const char *bytes, size_t size)
{
    struct part made = {.size = size};
    memcpy(made.bytes, bytes, size);
    return made;
}
#define PART(literal) part(literal, sizeof(literal) - 1)

static void add_byte(struct part *part, size_t byte)
{
    part->bytes[part->size++] = (uint8_t)byte;
}

static void add_number(struct part *part, uint64_t number, int width)
{
    while (width-- > 0)
        add_byte(part, (uint8_t)(number >> 8 * width));
}

/* The header of the payload: a MessagePack bin in its shortest form, as every encoder writes it. */
static void add_bin(struct part *part, size_t size)
{
    int width = size < 1 << 8 ? 1 : size < 1 << 16 ? 2 : 4;
    add_byte(part, width == 1 ? 0xc4 : width == 2 ? 0xc5 : 0xc6);
    add_number(part, size, width);
}

static void add_part(struct part *part, struct part more)
{
    memcpy(part->bytes + part->size, more.bytes, more.size);
    part->size += more.size;
}

/* Open a map or struct of a deadline and the payload, which then stands for the payload alone. The deadline
 * comes first: who looks for it need not pass over the payload. */
static void add_deadline(struct form *form)
{
    struct part *middle = &form->middle;
    uint64_t bits;
    memcpy(&bits, &options.deadline, sizeof bits);
    add_part(middle, options.thrift ? PART("\4\0\1") : PART("\x82\xab" "deadline_ms" "\xcb"));
    form->deadline_at = middle->size;
    add_number(middle, bits, NUMBER);
    add_part(middle, options.thrift ? PART("\x0b\0\2") : PART("\xa7" "payload"));
}

static void prepare_form(struct form *form, struct part head, struct part middle)
{
    *form = (struct form){.head = head, .middle = middle};
    if (options.deadline > 0)
        add_deadline(form);
    if (options.thrift)
        add_number(&form->middle, options.payload, 4);
    else
        add_bin(&form->middle, options.payload);
}

static void prepare_messages(void)
{
    bool in_struct = options.deadline > 0;
    if (options.thrift) {
        struct part argument = in_struct ? PART("\x0c\0\1") : PART("\x0b\0\1");
        struct part result = in_struct ? PART("\x0c\0\0") : PART("\x0b\0\0");
        prepare_form(&messages.request, PART("\x80\1\0\1\0\0\0\4echo"), argument);
        prepare_form(&messages.answer, PART("\x80\1\0\2\0\0\0\4echo"), result);
    } else {
        prepare_form(&messages.request, PART("\x94\0"), PART("\xa4" "echo" "\x91"));
        prepare_form(&messages.answer, PART("\x94\1"), PART("\xc0\xdd\0\0\0\1"));
    }
    /* Thrift's stop bytes, one for each struct; MessagePack's arrays and maps need none. */
    size_t end = !options.thrift ? 0 : in_struct ? 2 : 1;
    messages.filling_size = options.payload - STAMP + end;
    messages.filling = calloc(1, messages.filling_size);
    messages.batch = malloc(options.depth * (options.payload + 2 * MAX_PART + LENGTH));
    if (messages.filling == NULL || messages.batch == NULL)
        fail("no memory for the messages");
    for (size_t index = 0; index < options.payload - STAMP; index++)
        messages.filling[index] = (uint8_t)(index % 251); /* prime: no two parts of a payload are alike */
}

static uint8_t *put_part(uint8_t *to, const struct part *part)
{
    memcpy(to, part->bytes, part->size);
    return to + part->size;
}

/* Encode an id as the protocol's encoders do: Thrift in four bytes, MessagePack in as few as it needs. */
static uint8_t *put_id(uint8_t *to, uint32_t id)
{
    if (!options.thrift && id < 1 << 7) {
        *to++ = (uint8_t)id;
    } else if (!options.thrift && id < 1 << 8) {
        *to++ = 0xcc;
        *to++ = (uint8_t)id;
    } else if (!options.thrift && id < 1 << 16) {
        *to++ = 0xcd;
        *to++ = (uint8_t)(id >> 8);
        *to++ = (uint8_t)id;
    } else {
        if (!options.thrift)
            *to++ = 0xce;
        to = put32(to, id);
    }
    return to;
}

/* Write a new request of a connection. Returns the end of what it wrote. */
static uint8_t *put_request(uint8_t *to, struct connection *connection, uint64_t started)
{
    /* Answers may come in any order: pass over the place of one that is late. */
    struct request *request;
    do
        request = &connection->requests[connection->next_id++ % slots];
    while (request->started != 0);
    *request = (struct request){.id = connection->next_id - 1, .started = started};

    uint8_t *at = put_part(to + LENGTH, &messages.request.head);
    at = put_id(at, request->id);
    at = put_part(at, &messages.request.middle);
    at = put32(at, connection->number);
    at = put32(at, request->id);
    memcpy(at, messages.filling, messages.filling_size);
    at += messages.filling_size;
    put32(to, (uint32_t)(at - to - LENGTH));
    return at;
}

static _Noreturn void mismatch(const struct connection *connection, const uint8_t *answer, size_t size)
{
    fprintf(stderr, "connection %u got %zu bytes that answer none of its requests:", connection->number, size);
    size_t shown = size < 96 ? size : 96;
    for (size_t index = 0; index < shown; index++)
        fprintf(stderr, " %02x", answer[index]);
    fprintf(stderr, "\nas text: ");
    for (size_t index = 0; index < shown; index++)
        fputc(answer[index] >= ' ' && answer[index] <= '~' ? answer[index] : '.', stderr);
    fputc('\n', stderr);
    exit(1);
}

static bool is_part(const uint8_t *at, const struct part *part)
{
    return memcmp(at, part->bytes, part->size) == 0;
}

/* As is_part, of the middle of an answer: of a deadline it need only hold one. */
static bool is_middle(const uint8_t *at, const struct form *form)
{
    size_t same = form->deadline_at;
    if (same == 0)
        return is_part(at, &form->middle);
    size_t next = same + NUMBER;
    return memcmp(at, form->middle.bytes, same) == 0 &&
           memcmp(at + next, form->middle.bytes + next, form->middle.size - next) == 0;
}

/* Ends the program where the instance was told no deadline that is shorter than the client's. */
static void check_deadline(const struct connection *connection, const uint8_t *number)
{
    uint64_t bits = (uint64_t)get32(number) << 32 | get32(number + 4);
    double told;
    memcpy(&told, &bits, sizeof told);
    if (!(told > 0 && told < options.deadline)) /* nor NaN */
        fail("connection %u: of a deadline of %g ms the instance was told %g: nobody on the way kept it",
             connection->number, options.deadline, told);
}

/* Find the request that a message answers. Ends the program where there is none, or one byte is wrong. */
static struct request *answered(struct connection *connection, const uint8_t *message, size_t size)
{
    const struct form *form = &messages.answer;
    size_t after_id = form->middle.size + STAMP + messages.filling_size;
    if (size < form->head.size + 1 + after_id || !is_part(message, &form->head))
        mismatch(connection, message, size);

    const uint8_t *id_at = message + form->head.size;
    size_t width = options.thrift ? 4 : msgpack_width(*id_at);
    if (width == 0 || width > MAX_WIDTH || size != form->head.size + width + after_id)
        mismatch(connection, message, size);

    const uint8_t *middle = id_at + width;
    const uint8_t *stamp = middle + form->middle.size;
    uint32_t id = get32(stamp + 4);
    struct request *request = &connection->requests[id % slots];
    uint8_t expected_id[MAX_WIDTH];
    size_t expected_width = (size_t)(put_id(expected_id, id) - expected_id);
    if (width != expected_width || memcmp(id_at, expected_id, width) != 0 || !is_middle(middle, form) ||
        get32(stamp) != connection->number || request->id != id || request->started == 0 ||
        memcmp(stamp + STAMP, messages.filling, messages.filling_size) != 0)
        mismatch(connection, message, size);
    if (form->deadline_at > 0)
        check_deadline(connection, middle + form->deadline_at);
    return request;
}

/* ---- Connections */

static void watch(struct connection *connection, uint32_t events, int operation)
{
    struct epoll_event event = {.events = events, .data.ptr = connection};
    if (epoll_ctl(epoll, operation, connection->channel.socket, &event) < 0)
        fail("epoll_ctl");
}

static void ask(struct connection *connection, uint32_t count)
{
    bool was_full = connection->channel.out.size > 0;
    uint64_t started = now();
    uint8_t *end = messages.batch;
    for (uint32_t written = 0; written < count; written++)
        end = put_request(end, connection, started);
    run.in_flight += count;
    if (!dispatch(&connection->channel, messages.batch, (size_t)(end - messages.batch)))
        fail("connection %u cannot send", connection->number);
    if (!was_full && connection->channel.out.size > 0)
        watch(connection, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
}

static void send_rest(struct connection *connection)
{
    if (!dispatch_rest(&connection->channel))
        fail("connection %u cannot send", connection->number);
    if (connection->channel.out.size == 0)
        watch(connection, EPOLLIN, EPOLL_CTL_MOD);
}

/* Take the answers that are whole and check each. Returns how many they were. */
static uint32_t take_answers(struct connection *connection, struct span span)
{
    uint64_t arrived = now();
    uint32_t count = 0;
    size_t done = 0;
    while (span.size - done >= LENGTH) {
        const uint8_t *message = span.bytes + done + LENGTH;
        size_t size = get32(span.bytes + done);
        size_t come = span.size - done - LENGTH;
        if (size > MAX_FRAME)
            mismatch(connection, message, come);
        if (come < size)
            break;
        struct request *request = answered(connection, message, size);
        if (run.phase == MEASURING)
            record(arrived - request->started);
        request->started = 0;
        count++;
        done += LENGTH + size;
    }
    keep(&connection->channel.in, span.bytes + done, span.size - done);
    return count;
}

static void handle(struct connection *connection, uint32_t events)
{
    if (events & EPOLLOUT)
        send_rest(connection);
    if (!(events & ~(uint32_t)EPOLLOUT))
        return;
    struct span span;
    if (!receive(&connection->channel, &span))
        fail("connection %u was closed, with requests in flight", connection->number);
    uint32_t count = take_answers(connection, span);
    if (count == 0)
        return;
    if (!connection->answered) {
        connection->answered = true;
        run.unanswered--;
    }
    run.in_flight -= count;
    if (run.phase == MEASURING)
        run.answers += count;
    if (run.phase != DRAINING)
        ask(connection, count);
}

static void connect_all(void)
{
    struct sockaddr_in address = loopback(options.host, options.port);
    for (uint32_t number = 0; number < options.connections; number++) {
        struct connection *connection = &connections[number];
        int descriptor = socket(AF_INET, SOCK_STREAM, 0);
        if (descriptor < 0 || connect(descriptor, (struct sockaddr *)&address, sizeof address) < 0)
            fail("cannot connect to %s:%s", options.host, options.port);
        set_no_delay(descriptor);
        fcntl(descriptor, F_SETFL, O_NONBLOCK);
        connection->number = number;
        connection->next_id = 1;
        connection->channel.socket = descriptor;
        connection->requests = calloc(slots, sizeof *connection->requests);
        if (connection->requests == NULL)
            fail("no memory for the requests in flight");
        watch(connection, EPOLLIN, EPOLL_CTL_ADD);
    }
}

/* ---- The run */

/* Called with sign -1 when the window opens and 1 when it closes: what is left is what passed between. */
static void read_clocks(double sign, uint64_t time)
{
    run.seconds += sign * (double)time / 1e9;
    for (int index = 0; index < options.clocks; index++)
        run.cpu[index] += sign * cpu_seconds(options.clock[index]);
}

/* Thousands of answers may come at a time: a window shorter than that takes would count what was between. */
static bool has_turned_over(void)
{
    return run.answers >= (uint64_t)options.connections * options.depth;
}

static void enter(enum phase phase, uint64_t time)
{
    run.phase = phase;
    run.since = time;
}

/* Go on to the next phase where it is time. Returns false when all is done. */
static bool proceed(void)
{
    uint64_t time = now();
    uint64_t passed = time - run.since;
    errno = 0; /* `fail` would show one that has nothing to do with it */
    switch (run.phase) {
    case OPENING:
        if (run.unanswered == 0)
            enter(WARMING, time);
        else if (passed > PATIENCE)
            fail("%u of %u connections got no answer", run.unanswered, options.connections);
        return true;
    case WARMING:
        if (passed >= options.warm_up) {
            read_clocks(-1, time);
            enter(MEASURING, time);
        }
        return true;
    case MEASURING:
        if (passed >= options.window && (has_turned_over() || passed > options.window + PATIENCE)) {
            read_clocks(1, time);
            enter(DRAINING, time);
        }
        return true;
    case DRAINING:
        if (passed > PATIENCE)
            fail("%" PRIu64 " requests were never answered", run.in_flight);
        return run.in_flight > 0;
    }
    return false;
}

static void load(void)
{
    enter(OPENING, now());
    run.unanswered = options.connections;
    for (uint32_t number = 0; number < options.connections; number++)
        ask(&connections[number], options.depth);
    while (proceed()) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(epoll, events, EVENTS, WAIT_MS);
        for (int number = 0; number < ready; number++)
            handle(events[number].data.ptr, events[number].events);
    }
}

static void print_results(void)
{
    printf("{\"answers\": %" PRIu64 ", \"seconds\": %.6f, \"p50_us\": %.3f, \"p99_us\": %.3f, \"load_cpu\": %.6f",
           run.answers, run.seconds, percentile(0.5), percentile(0.99), run.cpu[0]);
    printf(", \"cpu\": [");
    for (int index = 1; index < options.clocks; index++)
        printf("%s%.6f", index > 1 ? ", " : "", run.cpu[index]);
    printf("]}\n");
}

static void read_arguments(int count, char **arguments)
{
    enum { PROTOCOL = 1, HOST, PORT, CONNECTIONS, DEPTH, PAYLOAD, WARM_UP, SECONDS, FIRST_PID };
    if (count > 2 && strcmp(arguments[1], "--deadline") == 0) {
        options.deadline = atof(arguments[2]);
        if (!(options.deadline > 0))
            fail("%s: a deadline is some milliseconds", arguments[2]);
        count -= 2;
        arguments += 2;
    }
    if (count < FIRST_PID || count > FIRST_PID + MAX_PIDS)
        fail("usage: rpc_load [--deadline MS] "
             "PROTOCOL HOST PORT CONNECTIONS DEPTH PAYLOAD WARM_UP SECONDS [PID...]");
    options.thrift = strcmp(arguments[PROTOCOL], "thrift") == 0;
    if (!options.thrift && strcmp(arguments[PROTOCOL], "msgpack") != 0)
        fail("%s: the protocol is msgpack or thrift", arguments[PROTOCOL]);
    options.host = arguments[HOST];
    options.port = arguments[PORT];
    options.connections = (uint32_t)atoi(arguments[CONNECTIONS]);
    options.depth = (uint32_t)atoi(arguments[DEPTH]);
    options.payload = (size_t)atoi(arguments[PAYLOAD]);
    if (options.connections < 1 || options.depth < 1 || options.payload < STAMP ||
        options.payload > MAX_FRAME / 2)
        fail("at least one connection, depth 1, and a payload from %d to %d bytes", STAMP, MAX_FRAME / 2);
    options.warm_up = (uint64_t)(atof(arguments[WARM_UP]) * (double)SECOND);
    options.window = (uint64_t)(atof(arguments[SECONDS]) * (double)SECOND);
    options.clock[options.clocks++] = CLOCK_PROCESS_CPUTIME_ID;
    for (int index = FIRST_PID; index < count; index++)
        if (clock_getcpuclockid(atoi(arguments[index]), &options.clock[options.clocks++]) != 0)
            fail("%s: no process whose CPU time could be read", arguments[index]);
}

int main(int count, char **arguments)
{
    read_arguments(count, arguments);
    raise_descriptor_limit();
    prepare_messages();
    epoll = epoll_create1(0);
    connections = calloc(options.connections, sizeof *connections);
    if (connections == NULL)
        fail("no memory for the connections");
    slots = 4 * options.depth; /* room for a few late answers before their places are in the way */
    connect_all();
    load();
    print_results();
    return 0;
}
