/*
 * The connections of a ZeroMQ socket with keys, by their file descriptors: since when each is there, whose it is, and
 * how much it has sent that is no whole message yet.  ZeroMQ keeps a multipart message until its last frame has come,
 * however many there are; only here shows how much that is.
 */
#ifndef PROTOCOL_CONNECTIONS_H
#define PROTOCOL_CONNECTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/error.h"

struct connections;

/* For a ZeroMQ socket without an address yet.  Free before the socket is closed; NULL is fine. */
int connections_new(void *context, void *socket, struct connections **ret_connections, struct error *err);
void connections_free(struct connections *connections);

/* Take in which connections came and went.  To be called now and then: the news are kept until then. */
void connections_catch_up(struct connections *connections);

/* The number of connections made so far: a clock. */
uint64_t connections_time(struct connections *connections);

/* Is the file descriptor's present connection one that was there at that time? */
bool connections_there(struct connections *connections, int fd, uint64_t time);

/* A whole message of this user came over it. */
void connections_note(struct connections *connections, int fd, unsigned int user);

void connections_cut(struct connections *connections, int fd); /* if it is there */

/* The same, or if none is there the next one: ZeroMQ may tell of a connection a little after it has sent something. */
void connections_cut_next(struct connections *connections, int fd);
void connections_cut_user(struct connections *connections, unsigned int user);

/* How many have failed in their handshake; connections_strangers adds those since it was last called. */
struct strangers {
	uint64_t keyless;  /* had shown no key when they ended */
	uint64_t mistaken; /* took another key for ours */
};
void connections_strangers(struct connections *connections, struct strangers *strangers);

/* What has come over TCP since the last whole message, when all whole messages have been received. */
struct unfinished {
	uint64_t bytes;      /* of all connections */
	int fd;              /* of those with more than a little, whose last whole message is the longest ago; or -1 */
	uint64_t fd_bytes;
	int64_t fd_since_ms;
};
void connections_unfinished(struct connections *connections, int64_t now_ms, struct unfinished *ret_unfinished);

#endif
