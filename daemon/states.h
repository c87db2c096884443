/*
 * Streams outlive memory and process: saving, evicting, resuming.  The loop's side of the store.
 *
 * A slot is a state on its way between a cache and a file: device to slot to file when saving, file to slot to device
 * when resuming.  There are few, so memory stays bounded and a burst of either waits its turn.
 */
#ifndef DAEMON_STATES_H
#define DAEMON_STATES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/generations.h"
#include "daemon/list.h"
#include "daemon/statefile.h"
#include "daemon/store.h"
#include "daemon/table.h"
#include "daemon/worker.h"
#include "protocol/endpoint.h"

struct server;
struct stream;
struct request;

#define STATE_SLOTS 3
#define SILENT_MS 5000 /* of a disk that makes no mark: no stream waits for it any longer */

/* What is remembered of a stream id that has states on disk. */
struct saved {
	struct table_entry entry;
	char key[HASH_TEXT];
	struct generations generations;
	struct slot *slot;      /* that is saving the stream just now */
	bool closed;            /* resumed only for a peer that still lacks hidden states */
	bool marked;            /* as closed, on disk: until a state is written a restart takes the stream for that */
	bool gone;              /* forgotten, but its files are not removed yet: nothing of this key until then */
	uint64_t number;        /* gone: of a state that was being written, 0: none */
	struct link unmarked;   /* files that are to be marked or removed, or where that has failed: */
	uint64_t mark;          /* its number among those, of server->marks_begun */
	bool fell_back;         /* a newer state is damaged, of which consumers were not told yet */
	char *damage;           /* why it cannot be resumed; NULL: it can */
	/* Of a stream that left memory in this run, until it comes back: */
	bool remembered, reply;
	uint64_t epoch, got, published;
	unsigned char *feeder;  /* [feeder_size], identity */
	size_t feeder_size;
};

struct slot {
	enum {
		SLOT_FREE,
		SLOT_SAVING,   /* cache -> state -> file */
		SLOT_RESUMING, /* file or request -> state -> cache */
		SLOT_SERVING   /* cache or file -> state -> request */
	} use;
	struct state *state;
	struct stream *stream;  /* NULL: it went away meanwhile */
	struct saved *saved;    /* SLOT_SAVING; NULL: forgotten meanwhile */
	struct generation generation; /* SLOT_SAVING: what will be on disk */
	bool evict;             /* SLOT_SAVING: let go of the stream afterwards */
	int64_t since_ms;       /* SLOT_SAVING: the stream had changed since then */
	struct request *request; /* that is being served; NULL: none */
	struct job job;
	struct store_job task;
};

/* Messages that wait for a stream to come back or for room in memory, in order of arrival. */
struct held {
	struct held *next;
	bool router;
	unsigned user;
	size_t n_frames;
	size_t size[ENDPOINT_FRAMES_MAX];
	unsigned char bytes[];
};

struct held_list {
	struct held *first, *last;
};

/* A stream for which there is no room in memory yet. */
struct waiter {
	struct table_entry entry;
	struct link link;
	struct held_list held;
	size_t id_size;
	unsigned char id[MESSAGE_STREAM_MAX];
};

/* Counters since the start. */
struct state_stats {
	uint64_t saved, saved_bytes, save_ns, errors, resumed, evicted, damaged;
	bool failing;      /* the last attempt at this task failed, */
	enum store_task task;
	char why[256];     /* because of this */
};

/* --- states.c: the table of what is on disk --- */

/* Open state.dir, if one is configured; learn what is in it.  Errors name the folder. */
int states_open(struct server *server, struct error *err);

/* Let the store finish; after timeout_ms server->store is there still, at work with the slots' states and the model. */
void states_close(struct server *server, int timeout_ms);

/* What is remembered of a stream id with this key; NULL if nothing, or if states are not kept. */
struct saved *states_find(struct server *server, const char key[HASH_TEXT]);

/* Was the stream forgotten, but its files are not removed yet? */
bool states_going(struct server *server, const char key[HASH_TEXT]);

/* The same as states_find, made if need be.  NULL: no memory, or the stream's files are going. */
struct saved *states_get(struct server *server, const char key[HASH_TEXT]);

/* Take over what a STORE_READ of this stream taught about its generations, and say which are damaged. */
void states_learn(struct server *server, const void *id, size_t id_size, struct saved *saved,
		  const struct store_job *task);

/* Is a state of this epoch on disk, as far as is known, or being written? */
bool states_has(const struct saved *saved, uint64_t epoch);

/* Remove a stream's states from disk and forget it. */
void states_forget(struct server *server, struct saved *saved);

/* A life begins: what was kept of a closed one before it is no longer needed. */
void states_begun(struct server *server, const struct stream *stream);

/*
 * May hidden states of the stream go out, or its end?  A kill must not bring back what its peer takes for gone: so not
 * before the states of a life that was closed are removed; and the end not before the stream is marked as closed or,
 * without reply, its own states are removed; unless the disk fails.  If not, publish_hidden is called again then.
 */
bool states_let_speak(struct server *server, struct stream *stream, bool end);

/* The life ended by a close: forget all states, or keep its own while its peer may lack hidden states or the end. */
void states_closed(struct server *server, struct stream *stream);

/* The position before which rows of the stream never have to be sent again. */
uint64_t states_durable(struct server *server, struct stream *stream);

/* A task could not be done for the stream with this key; returns when to try it again.  One of its kind could. */
int64_t states_failed(struct server *server, enum store_task task, const char key[HASH_TEXT],
		      const struct error *error);
void states_well(struct server *server, enum store_task task);

/*
 * Try again to mark and to remove files where that has failed; let no stream wait while the disk hangs.  Returns when it
 * should be called again.
 */
int64_t states_retry(struct server *server);

/* Is the stream closed, also for the next start? */
bool states_closed_on_disk(const struct server *server, const struct saved *saved);

/* Are the first `mark` of server->marks_begun made? */
bool states_marked(struct server *server, uint64_t mark);

/* Collect what the store has finished, and go on with it. */
void states_collect(struct server *server);

struct slot *states_slot(struct server *server); /* a free one; NULL: none */

/* A copy that the worker did for a slot is over. */
void states_copied(struct server *server, struct job *job);

/* --- saving.c: memory to disk --- */

/*
 * Can the stream's state be taken now?  If not, saving_hold keeps it out of batches until it can be, or saving_release
 * is called; but not while its peer has no room for what it emits, rows of its next cut are to come, or slots hang.
 */
bool saving_quiet(const struct stream *stream);
void saving_hold(struct server *server, struct stream *stream);
void saving_release(struct server *server, struct stream *stream);

/* The next state that is taken is to have all rows accepted so far: whole windows are computed first. */
void saving_cut(struct server *server, struct stream *stream);

/* Start the copy of a quiet stream's cache and pending rows into a free slot's state. */
void saving_take(struct server *server, struct stream *stream, struct slot *slot);

/* The stream has taken rows or emitted hidden states since it was saved. */
void saving_note(struct server *server, struct stream *stream);

/* Start saving what is due.  Returns when it should be called again: monotonic milliseconds. */
int64_t saving_start(struct server *server);

void saving_copied(struct server *server, struct slot *slot);
void saving_written(struct server *server, struct slot *slot);

/* Save the stream next, if it has changed. */
void saving_hurry(struct server *server, struct stream *stream);

/* Let go of an idle stream, now or once it is saved.  false: neither is possible just now. */
bool saving_evict(struct server *server, struct stream *stream);

/* When the daemon stops: is everything saved that can be? */
bool saving_finished(struct server *server);

/* It stops before they are: name the streams, and from where their rows have to come again. */
void saving_give_up(struct server *server);

enum room { ROOM_YES, ROOM_SOON, ROOM_NONE };

/* Is there room in memory for one more stream?  If not, begin to make some. */
enum room saving_make_room(struct server *server);

/* --- resuming.c: disk to memory --- */

/*
 * Bring a stream back: stream (STREAM_LOADING, in place) becomes live once it is loaded.  rewinding: to a state of its
 * epoch in which no hidden state from `from` on counts as emitted.
 */
void resuming_start(struct server *server, struct stream *stream, struct saved *saved, bool rewinding, uint64_t from);

/*
 * Begin to bring back, as soon as there is room, a stream for which no message has come: it has to be known which epoch
 * it is in.  Called again until it is there.  Errors: REFUSED_SHUTTING_DOWN, those of stream_new.
 */
int resuming_bring_back(struct server *server, const void *id, size_t id_size, struct saved *saved, struct error *err);
void resuming_read(struct server *server, struct slot *slot);
void resuming_copied(struct server *server, struct slot *slot);

/* Start the copy of the slot's state into the cache of stream (STREAM_LOADING). */
void resuming_give(struct stream *stream, struct slot *slot);

/* Give the stream the state's counts and pending rows.  On failure it is as before. */
int resuming_adopt(struct server *server, struct stream *stream, const struct state *state, struct error *err);

/* The stream (STREAM_LOADING, in place) takes rows from now on.  saved: it is as what is on disk. */
void resuming_go_live(struct server *server, struct stream *stream, bool saved);

/* A slot has done its work. */
void states_free_slot(struct server *server, struct slot *slot);

/* Streams that wait for a slot.  Returns when it should be called again: monotonic milliseconds. */
int64_t resuming_go_on(struct server *server);

/* --- messages that wait --- */

/* Keep a copy of a message for later.  false: too much is held already. */
bool held_add(struct server *server, struct held_list *list, const struct endpoint_message *message, bool router);
struct held *held_pop(struct server *server, struct held_list *list); /* free with free */
void held_message(const struct held *held, struct endpoint_message *ret_message);

/* The messages of a stream id that wait for room; NULL: none do.  waiting_get makes a place; NULL: too much is held. */
struct held_list *waiting_find(struct server *server, const void *id, size_t id_size);
struct held_list *waiting_get(struct server *server, const void *id, size_t id_size);
struct held_list waiting_pop(struct server *server); /* of the stream that waits longest; there is one */

#endif
