/* What rpc_load.c and rpc_instance.c share: a connection's buffers, big-endian numbers, ids, and failing.
 *
 * Both read into one buffer that all connections share and write from where the bytes are: it stays in the
 * processor's cache, and a connection holds memory of its own only for what is not yet whole (`in`) or could
 * not be sent at once (`out`). Every frame of both protocols begins with its length, 4 bytes, big-endian.
 */
#ifndef RPC_CHANNEL_H
#define RPC_CHANNEL_H

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    LENGTH = 4,
    CHUNK = 256 << 10, /* bytes read at a time: half of a small second-level cache */
    MAX_FRAME = 16 << 20,
};

struct buffer {
    uint8_t *bytes;
    size_t size;
    size_t capacity;
};

struct channel {
    int socket;
    struct buffer in;  /* the beginning of a frame whose end has not been read */
    struct buffer out; /* what the socket did not take */
};

/* Bytes that have been read: `size` of them, in the shared buffer or in the channel's own. */
struct span {
    uint8_t *bytes;
    size_t size;
};

/* Print a message as printf does, with the system's last error where there is one, and exit with 1. */
static inline _Noreturn void fail(const char *format, ...)
{
    int error = errno;
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, error ? ": %s\n" : "\n", strerror(error));
    exit(1);
}

static inline uint32_t get32(const uint8_t *from)
{
    uint32_t number;
    memcpy(&number, from, sizeof number);
    return ntohl(number);
}

static inline uint8_t *put32(uint8_t *to, uint32_t number)
{
    number = htonl(number);
    memcpy(to, &number, sizeof number);
    return to + sizeof number;
}

/* Bytes that a MessagePack whole number takes, by its first one; 0: none that the benchmark uses. */
static inline size_t msgpack_width(uint8_t first)
{
    switch (first) {
    case 0xcc:
        return 2;
    case 0xcd:
        return 3;
    case 0xce:
        return 5;
    case 0xcf:
        return 9;
    default:
        return first < 0x80 ? 1 : 0;
    }
}

static inline void reserve(struct buffer *buffer, size_t capacity)
{
    if (capacity <= buffer->capacity)
        return;
    buffer->bytes = realloc(buffer->bytes, capacity);
    if (buffer->bytes == NULL)
        fail("no memory for %zu bytes", capacity);
    buffer->capacity = capacity;
}

/* Make a buffer hold these bytes and no others; they may be a part of what it holds. */
static inline void keep(struct buffer *buffer, const uint8_t *bytes, size_t size)
{
    reserve(buffer, size); /* never moves bytes that are its own: those fit */
    if (size > 0)
        memmove(buffer->bytes, bytes, size);
    buffer->size = size;
}

static inline void append(struct buffer *buffer, const uint8_t *bytes, size_t size)
{
    reserve(buffer, buffer->size + size);
    memcpy(buffer->bytes + buffer->size, bytes, size);
    buffer->size += size;
}

/* Read once. Returns false when the other side has closed or broken the connection; a span may be empty. */
static inline bool receive(struct channel *channel, struct span *span)
{
    static uint8_t shared[CHUNK];
    size_t held = channel->in.size;
    size_t room = CHUNK;
    span->bytes = shared;
    if (held > 0) {
        reserve(&channel->in, held + CHUNK / 4);
        span->bytes = channel->in.bytes;
        room = channel->in.capacity - held;
    }
    errno = 0; /* a connection that the other side closed leaves it so, for `fail` */
    ssize_t got = recv(channel->socket, span->bytes + held, room, 0);
    if (got == 0 || (got < 0 && errno != EAGAIN))
        return false;
    span->size = held + (got > 0 ? (size_t)got : 0);
    return true;
}

/* Send at once what the socket takes and keep the rest. Returns false when the connection is broken. */
static inline bool dispatch(struct channel *channel, const uint8_t *bytes, size_t size)
{
    if (channel->out.size > 0) {
        append(&channel->out, bytes, size);
        return true;
    }
    ssize_t sent = size > 0 ? send(channel->socket, bytes, size, MSG_NOSIGNAL) : 0;
    if (sent < 0 && errno != EAGAIN)
        return false;
    size_t taken = sent > 0 ? (size_t)sent : 0;
    keep(&channel->out, bytes + taken, size - taken);
    return true;
}

/* Send on what `dispatch` kept. Returns false when the connection is broken. */
static inline bool dispatch_rest(struct channel *channel)
{
    size_t size = channel->out.size;
    channel->out.size = 0;
    return dispatch(channel, channel->out.bytes, size);
}

static inline void set_no_delay(int socket)
{
    int on = 1;
    if (setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0)
        fail("TCP_NODELAY");
}

static inline struct sockaddr_in loopback(const char *host, const char *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1)
        fail("%s: not an IPv4 address", host);
    return address;
}

/* A frame-aware proxy may open a connection for each request in flight. */
static inline void raise_descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        fail("getrlimit");
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
        fail("setrlimit");
}

#endif
