/*
 * Streams: their rows on the way to the device and their hidden states on the way out.
 *
 * A struct stream is one life of a stream id: it begins with a zero cache and ends with a close, an epoch change or a
 * reset.  The next life of the same id may be fed while the old one still drains; its output waits for the old one's.
 *
 * Rows are counted from the life's first row (accepted >= flushed >= submitted >= computed).  Where rows were skipped,
 * positions run ahead of the count; each row carries its position.
 */
#ifndef DAEMON_STREAM_H
#define DAEMON_STREAM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/limits.h"
#include "daemon/list.h"
#include "daemon/pool.h"
#include "daemon/states.h"
#include "daemon/table.h"
#include "protocol/message.h"

/* Somebody who feeds streams: a peer of the ingest socket, or all publishers that the daemon subscribes to as one. */
struct peer {
	struct table_entry entry;
	bool router;          /* can be answered */
	unsigned user;        /* whose key it showed, as of its last message */
	struct account *account, own; /* its key's, or its own */
	int64_t full_ms;      /* then it had no room for an ack */
	uint64_t outstanding; /* rows accepted and not done, over all its streams */
	size_t holds;         /* streams that it feeds, and the message being handled */
	size_t identity_size;
	unsigned char identity[255];
};

/* The rows of one window, filling up or waiting to be computed. */
struct block {
	struct block *next;
	bool has_t;
	uint64_t t;     /* of the latest message that ended in this window, */
	size_t t_row;   /* at this row of it */
	uint64_t arrived_ns; /* its newest row */
	uint64_t *position; /* [window] */
	enum dtype *dtype;  /* [window] of each row, */
	float *rows;        /* [window, hidden_size] as they came: see struct window */
};

/* The hidden states of one window, on their way out.  Lent to sockets: freed with the last reference. */
struct hidden {
	struct hidden *next;
	struct pool *pool;
	atomic_uint refs;
	uint64_t arrived_ns, started_ns, ended_ns; /* when its newest row came, and when it was computed */
	uint64_t first;     /* the window's first row, counted in the life */
	size_t row, end;    /* rows still to send: [row, end) of the window */
	size_t output;      /* of these, the outputs before this one are sent */
	bool published;     /* and this one has gone to the publish socket */
	bool has_t;
	uint64_t t;
	size_t t_row;
	uint64_t *position; /* [window] */
	unsigned char *data; /* [n_outputs, window, hidden_size] in the output dtype */
};

enum stream_phase {
	STREAM_LOADING, /* comes back from disk; its messages wait */
	STREAM_LIVE,    /* takes rows */
	STREAM_RETIRED, /* an epoch change or reset ended it: what it accepted goes out */
	STREAM_ENDING   /* closed: what it accepted goes out, the last hidden state says end */
};

struct lane;

struct stream {
	struct table_entry entry; /* of the latest life of the id */
	enum stream_phase phase;
	struct stream *before, *after; /* lives of the same id: one that still drains, one that waits for this one */
	uint64_t epoch;
	struct peer *feeder; /* NULL: gone; whoever sends next takes over */
	struct account *account; /* for which it counts: its feeder's, also when that is gone, not its key; or NULL */
	bool reply;          /* hidden states go to the feeder too */

	/* After a gap reset the producer's own numbering goes on: in its source_epoch, ahead by source_origin. */
	uint64_t source_epoch, source_origin;

	struct lane *lane; /* that has the cache */
	struct cache *cache;
	uint64_t accepted;  /* rows taken in */
	uint64_t submitted; /* rows in windows handed to the worker */
	uint64_t flushed;   /* rows handed to the worker, unfinished windows included */
	uint64_t computed;  /* rows that the cache has seen */
	uint64_t done;      /* rows sent to all who get them */
	uint64_t flush_to;  /* rows before this count are to be emitted though their window be unfinished */
	struct block *blocks, *last_block; /* rows from computed on */
	struct block *unsubmitted;         /* the first block not handed to the worker */
	unsigned in_flight;                /* jobs that hold this stream */

	uint64_t next;      /* position expected */
	uint64_t emitted;   /* rows before this position are done */
	uint64_t published; /* rows before this position have gone to the publish socket */
	uint64_t got;       /* the replying peer has every hidden state before this position */
	uint64_t durable;   /* the feeder was told since it opened the stream */
	struct hidden *outbox, *last_outbox;
	bool end_sent;
	bool may_speak, may_end; /* as states_let_speak said */

	bool has_event;     /* to be sent when this life's turn comes */
	enum message_event event;
	char event_text[160];
	enum message_event end_event; /* EVENT_CLOSED or EVENT_EVICTED */

	/* On disk: daemon/states.h. */
	char key[HASH_TEXT];   /* of the id; set if states are kept */
	struct slot *slot;     /* that is saving or loading the stream just now */
	bool changed;          /* since it was last saved, */
	int64_t unsaved_ms;    /* since then */
	struct link hold;      /* kept out of batches until its state is taken: see saving_hold */
	uint64_t cut;          /* not before so many rows are computed */
	bool rewinding;        /* STREAM_LOADING: to a state with emitted <= from, */
	bool rewound;          /* by stream_rewind: its epoch is the stream's own, not what a message says */
	uint64_t from;
	int64_t retry_ms;      /* STREAM_LOADING: not read before: the last attempt failed */
	struct held_list held; /* STREAM_LOADING, STREAM_ENDING: messages that wait */

	int64_t unflushed_ms; /* since when unfinished rows wait */
	int64_t active_ms;    /* of the last message, or when it was found unable to leave */
	struct link ready, dirty, stalled, unflushed, unsaved, silent, idle; /* places in the server's lists */
	size_t id_size;
	unsigned char id[MESSAGE_STREAM_MAX];
};

#endif
