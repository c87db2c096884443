/*
 * A daemon between fakes that runs in steps, and its peers.  It has a thread of its own, but runs only while the test
 * waits in turn(), until it would wait itself; so a test says what happens between any two steps.  What goes wrong ends
 * the test.
 *
 * Peers and streams are named by a letter.  Rows have 64 columns, are the same for the same position, and every hidden
 * state that comes is checked.
 */
#ifndef TESTS_STEPPED_DAEMON_H
#define TESTS_STEPPED_DAEMON_H

#include <check.h>

#include "daemon/server.h"
#include "protocol/control.h"
#include "protocol/message.h"

/* The daemon of the test, and what it did. */
struct run {
	struct server server;
	struct error error;
	bool ended;
	int timeout_ms;     /* of its last wait */
	char deaf;          /* the peer that does not read; 0: all do */
	size_t n_seen;      /* messages on ingest that were not waited for */
	unsigned n_answers; /* to control requests */
};

extern struct run run;

/* --- the daemon --- */

#define SETTINGS(...) ((const char *const[]){ __VA_ARGS__, NULL })
#define MOST_TURNS 20000 /* until what is waited for counts as never */

/* Let it run until the condition holds. */
#define UNTIL(condition) \
	for (unsigned turns = 0; !(condition); turn()) \
		ck_assert_msg(turns++ < MOST_TURNS, "never: " #condition)

/* Begin a daemon with these settings, and states on disk or none. */
void start(bool states, const char *const *settings);
void turn(void);

/* Wait until the daemon has ended: server_run's result.  The first leaves its folder of states to the caller. */
int await_end(void);
int end_of_run(void);

/* Have it end; it must do so without an error. */
void stop(void);

/* --- its peers --- */

void say(char peer, char stream, const struct message *message);
void say_rows(char peer, char stream, uint64_t pos, uint64_t rows);
void say_open(char peer, char stream);

/* Has something of this type been said of the stream?  Then it is taken off what was seen.  hear waits for it. */
bool heard(char stream, enum message_type type, struct message *ret_message);
struct message hear(char stream, enum message_type type);

/* Wait for hidden states up to stop. */
void hear_rows(char stream, uint64_t stop);

/* Open the stream: at what position it goes on. */
uint64_t open_stream(char peer, char stream);

/* Peer x opens a stream and feeds it nine rows; with windows of four it knows the first eight hidden states. */
void feed(char stream);

/* Begin a daemon with stream a, fed and then gone from memory. */
void start_evicted(void);

/* --- control requests --- */

/* Ask cmd of a stream, "" for none; with to and with_state NULL where the command has none. */
void ask(const char *cmd, const char *stream, const struct control *with_state);
void ask_of(const char *cmd, const char *stream, const char *to, const struct control *with_state);

/* The answer to what was asked last, or its refusal with this code. */
struct control answered(const char *code);

/* Have a stream saved, or "": all. */
void snapshot(const char *stream);
struct control export_of(const char *stream);

#endif
