/*
 * The store: the thread that writes, reads and removes state files, so that the loop never waits for a disk.
 *
 * Files are named HASH-NUMBER.safetensors: HASH is that of the stream id (which stands inside), NUMBER, in hex, grows
 * with each generation of any stream.  HASH.closed, beside a stream's states, says that it is closed and its
 * last hidden states are not confirmed.
 *
 * The loop hands jobs over and collects them when done, in order; while the store has a job, nobody else touches it.
 */
#ifndef DAEMON_STORE_H
#define DAEMON_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/generations.h"
#include "daemon/statefile.h"
#include "model/model.h"

enum store_task {
	STORE_WRITE,  /* a mark goes, state becomes generation `number`; then the doomed ones are removed */
	STORE_READ,   /* the newest generation that is sound, and suits epoch and from, into state */
	STORE_REMOVE, /* all generations and the mark of a closed stream */
	STORE_CLOSE   /* mark the stream closed, keep its generations */
};

struct store_job {
	struct store_job *next;
	enum store_task task;
	char key[HASH_TEXT];     /* of the stream id: store_key */
	struct state *state;     /* the caller's; STORE_WRITE, STORE_READ */
	uint64_t number;         /* STORE_WRITE; STORE_REMOVE: one more to remove, 0: none */
	struct generations generations; /* those there are; STORE_READ fills in what it learned of them */
	bool rewinding;          /* STORE_READ: only a state of `epoch` with emitted <= from will do, */
	bool epoch_known;        /* if not: unless the newest is of another epoch, which is the stream's then */
	uint64_t epoch, from;
	bool found; /* STORE_READ: state is filled in; if not, though rewinding: none suits, go on from 0 */
	bool damaged[GENERATIONS_MAX]; /* STORE_READ: put aside, and why the last one was: */
	struct error damage;
	bool outrun[GENERATIONS_MAX];  /* STORE_READ, rewinding: removed, for the stream goes on from before them */
	struct error error;      /* code 0, or why the task failed */
	uint64_t bytes, ns;      /* STORE_WRITE */
	void *owner;             /* the caller's */
};

struct store;

/* Called by store_open for each stream found; generations are sorted and not known yet. */
typedef int store_found(void *arg, const char *key, const struct generations *generations, bool closed,
			struct error *err);

/*
 * Lock folder (made if missing), list what is in it, and start the thread.  Leftovers of unfinished writes are removed.
 * ERR_SYSTEM: the folder cannot be used, or another daemon has it.
 */
int store_open(const char *folder, const struct model *model, size_t window, store_found *found, void *arg,
	       struct store **ret_store, struct error *err);

/*
 * Finish what was handed over and free the store; NULL is fine.  ERR_SYSTEM: it was not finished within timeout_ms, as
 * when the disk hangs.  Then the thread goes on with its jobs for as long as the process lives: nothing of theirs, nor
 * the model, may be freed.
 */
int store_close(struct store *store, int timeout_ms, struct error *err);

/* The key of a stream id. */
void store_key(const void *id, size_t size, char ret_key[HASH_TEXT]);

void store_submit(struct store *store, struct store_job *job);
int store_fd(const struct store *store);                /* can be read when there is something to collect */
struct store_job *store_collect(struct store *store);   /* NULL: nothing yet */

#endif
