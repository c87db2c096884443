/*
 * What one key may take, over all its connections; or one connection that showed none.
 */
#ifndef DAEMON_LIMITS_H
#define DAEMON_LIMITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/error.h"

struct peer;
struct server;
struct stream;

struct account {
	bool lasting;      /* a key's: its connections come and go */
	bool unlimited;    /* publishers without keys: they cannot be told apart, and are held back as a whole */
	size_t streams;    /* that it opened or took over last */
	int64_t second_ms; /* when the present second began, */
	uint64_t messages; /* and how many messages came in it */
};

struct accounts {
	struct account **item; /* [n], by user - 1; NULL: nothing is counted yet */
	size_t n;
};

/* A message of the peer came, with this user's key: from now on it counts for that. */
int limits_identify(struct server *server, struct peer *peer, unsigned user, struct error *err);
void limits_free(struct server *server);

/* Count a message.  REFUSED_NO_CREDIT if it is one too many in this second. */
int limits_count_message(struct server *server, struct peer *peer, struct error *err);

/* May the peer have the stream (NULL: a new one) beside those that count for it?  Else REFUSED_TOO_MANY_STREAMS. */
int limits_check_streams(const struct server *server, const struct peer *peer, const struct stream *stream,
			 struct error *err);

/*
 * Where keys are asked for: ZeroMQ keeps messages until their last frame has come, so all such beginnings together are
 * bounded here.  Beyond that the connections are cut whose last whole message is the longest ago.  Who did not get in
 * is told as well.  Returns when to call again: monotonic milliseconds.
 */
int64_t limits_sweep(struct server *server);

/* The stream counts for this account from now on; NULL: for none. */
void limits_count_stream(struct stream *stream, struct account *account);

#endif
