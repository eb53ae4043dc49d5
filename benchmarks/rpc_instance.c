/* An instance that answers what rpc_load.c asks: echo, in msgpack-rpc and in Thrift (framed, binary).
 *
 *     rpc_instance HOST PORT
 *
 * It costs as little as an instance can, so that what is measured is the proxy before it. An answer is as
 * long as its request: it is made in place and sent from where it was read, all answers of a read at once.
 * For that the msgpack result is the request's one-element array in its longest encoding, which makes up for
 * the method's name.
 *
 *     msgpack  request  94 00 id  a4 e c h o 91         bin…      thrift  80 01 00 01 name id  0b 00 01 string 00
 *              answer   94 01 id  c0 dd 00 00 00 01     bin…              80 01 00 02 name id  0b 00 00 string 00
 *
 * What the parameter is does not matter here, it is echoed whole. Where requests have a deadline, it is a map
 * of "deadline_ms" and "payload" in place of the bin, and in Thrift a struct (0c) of a double and a string.
 */
#define _GNU_SOURCE
#include "rpc_channel.h"

#include <sys/epoll.h>

enum { EVENTS = 1024, BACKLOG = 4096 };

static int epoll;

static bool answer_msgpack(uint8_t *message, size_t size)
{
    static const uint8_t method_and_array[] = "\xa4" "echo" "\x91";
    static const uint8_t error_and_array[] = "\xc0\xdd\0\0\0\1";
    size_t width = size > 2 ? msgpack_width(message[2]) : 0;
    uint8_t *after_id = message + 2 + width;
    if (width == 0 || size < 2 + width + 6 || message[1] != 0 || memcmp(after_id, method_and_array, 6) != 0)
        return false;
    message[1] = 1;
    memcpy(after_id, error_and_array, 6);
    return true;
}

static bool answer_thrift(uint8_t *message, size_t size)
{
    static const uint8_t call[] = "\x80\1\0\1\0\0\0\4echo";
    if (size < 24 || memcmp(message, call, 12) != 0)
        return false;
    message[3] = 2;
    message[18] = 0; /* the result is field 0, the argument was field 1 */
    return true;
}

static bool answer(uint8_t *message, size_t size)
{
    return size > 0 && message[0] == 0x94 ? answer_msgpack(message, size) : answer_thrift(message, size);
}

/* Turn every whole request into its answer. Returns the bytes that they take, or -1 for anything else. */
static ssize_t answer_all(struct span span)
{
    size_t done = 0;
    while (span.size - done >= LENGTH) {
        uint8_t *message = span.bytes + done + LENGTH;
        size_t size = get32(span.bytes + done);
        if (size > MAX_FRAME)
            return -1;
        if (span.size - done - LENGTH < size)
            break;
        if (!answer(message, size))
            return -1;
        done += LENGTH + size;
    }
    return (ssize_t)done;
}

/* Read, answer, and keep what is incomplete. Returns false when the connection is over. */
static bool serve(struct channel *channel)
{
    struct span span;
    if (!receive(channel, &span))
        return false;
    ssize_t done = answer_all(span);
    if (done < 0) {
        fprintf(stderr, "a connection sent what is no request of rpc_load, and was closed\n");
        return false;
    }
    if (!dispatch(channel, span.bytes, (size_t)done))
        return false;
    keep(&channel->in, span.bytes + done, span.size - (size_t)done);
    return true;
}

static void watch(struct channel *channel, uint32_t events, int operation)
{
    struct epoll_event event = {.events = events, .data.ptr = channel};
    if (epoll_ctl(epoll, operation, channel->socket, &event) < 0)
        fail("epoll_ctl");
}

static void handle(struct channel *channel)
{
    bool was_full = channel->out.size > 0;
    if (!(was_full ? dispatch_rest(channel) : serve(channel))) {
        close(channel->socket);
        free(channel->in.bytes);
        free(channel->out.bytes);
        free(channel);
        return;
    }
    bool is_full = channel->out.size > 0;
    if (is_full != was_full) /* who does not read its answers gets no more of them */
        watch(channel, is_full ? EPOLLOUT : EPOLLIN, EPOLL_CTL_MOD);
}

static void accept_all(int listener)
{
    int socket;
    while ((socket = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        struct channel *channel = calloc(1, sizeof *channel);
        if (channel == NULL)
            fail("no memory for a connection");
        channel->socket = socket;
        set_no_delay(socket);
        watch(channel, EPOLLIN, EPOLL_CTL_ADD);
    }
    if (errno != EAGAIN && errno != ECONNABORTED)
        fail("accept");
}

static int listen_on(struct sockaddr_in address)
{
    int on = 1;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, BACKLOG) < 0)
        fail("cannot listen on port %d", ntohs(address.sin_port));
    return listener;
}

int main(int count, char **arguments)
{
    if (count != 3)
        fail("usage: rpc_instance HOST PORT");
    raise_descriptor_limit();
    epoll = epoll_create1(0);
    struct channel listener = {.socket = listen_on(loopback(arguments[1], arguments[2]))};
    watch(&listener, EPOLLIN, EPOLL_CTL_ADD);
    for (;;) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        for (int number = 0; number < ready; number++) {
            struct channel *channel = events[number].data.ptr;
            if (channel == &listener)
                accept_all(listener.socket);
            else
                handle(channel);
        }
    }
}
