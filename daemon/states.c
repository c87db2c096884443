/*
 * What is remembered of streams on disk, and the slots in which states travel: see states.h.
 */
#include "daemon/states.h"

#include <assert.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/clock.h"
#include "daemon/durable.h"
#include "daemon/server.h"

#define RETRY_MS 1000 /* after a failure */

/* --- the table --- */

/* Called by the store for each stream in the folder. */
static int remember(void *arg, const char *key, const struct generations *generations, bool closed, struct error *err)
{
	struct server *server = arg;
	struct saved *saved = calloc(1, sizeof *saved);

	if (!saved)
		return error_memory(err, "streams on disk");
	memcpy(saved->key, key, sizeof saved->key);
	saved->entry.key = saved->key;
	saved->entry.key_size = HASH_TEXT - 1;
	saved->generations = *generations;
	if (generations->n && generations->item[generations->n - 1].number > server->last_number)
		server->last_number = generations->item[generations->n - 1].number;
	saved->closed = saved->marked = closed;
	table_insert(&server->saved, &saved->entry);
	return 0;
}

int states_open(struct server *server, struct error *err)
{
	const struct config *config = server->config;
	int rc;

	for (size_t i = 0; i < STATE_SLOTS; i++) {
		rc = state_new(&server->model->shape, config->window, &server->slots[i].state, err);
		if (rc)
			return rc;
	}
	if (!config->state.dir[0])
		return 0;
	rc = store_open(config->state.dir, server->model, config->window, remember, server, &server->store, err);
	if (!rc)
		log_info("states in %s: %zu streams", config->state.dir, server->saved.n);
	return rc;
}

static void free_saved(struct server *server, struct saved *saved)
{
	table_remove(&server->saved, &saved->entry);
	free(saved->damage);
	free(saved->feeder);
	free(saved);
}

static struct saved *find(struct server *server, const char key[HASH_TEXT])
{
	struct table_entry *entry = server->store ? table_find(&server->saved, key, HASH_TEXT - 1) : NULL;

	return entry ? list_entry(entry, struct saved, entry) : NULL;
}

struct saved *states_find(struct server *server, const char key[HASH_TEXT])
{
	struct saved *saved = find(server, key);

	return saved && !saved->gone ? saved : NULL;
}

bool states_going(struct server *server, const char key[HASH_TEXT])
{
	const struct saved *saved = find(server, key);

	return saved && saved->gone;
}

struct saved *states_get(struct server *server, const char key[HASH_TEXT])
{
	struct saved *saved = find(server, key);
	struct generations none = { .n = 0 };

	if (saved)
		return saved->gone ? NULL : saved;
	return remember(server, key, &none, false, NULL) ? NULL : states_find(server, key);
}

bool states_has(const struct saved *saved, uint64_t epoch)
{
	return generations_has(&saved->generations, epoch) ||
	       (saved->slot && saved->slot->generation.epoch == epoch);
}

void states_learn(struct server *server, const void *id, size_t id_size, struct saved *saved,
		  const struct store_job *task)
{
	struct log_about about = { id, id_size, refusal_name(REFUSED_STATE_DAMAGED) };
	bool damaged = false;

	for (size_t i = 0; i < task->generations.n; i++) {
		const struct generation *generation = &task->generations.item[i];

		damaged |= task->damaged[i];
		if (task->damaged[i] || task->outrun[i])
			generations_remove(&saved->generations, generation->number);
		else if (generation->known)
			generations_learn(&saved->generations, generation);
	}
	if (!damaged)
		return;
	saved->fell_back = true;
	server->state_stats.damaged++;
	log_about(LOG_LEVEL_WARNING, &about, "%s; the state before it is used", task->damage.text);
}

/* --- marks and removals: one after another, without a slot --- */

/* One is done, or no longer wanted. */
static void mark_well(struct server *server)
{
	if (!list_empty(&server->failed_marks))
		return;
	states_well(server, STORE_CLOSE);
	states_well(server, STORE_REMOVE);
}

/* Have the store do the next one, unless it is at one. */
static void go_on_marking(struct server *server)
{
	struct link *link;

	while (!server->marking && (link = list_first(&server->unmarked))) {
		struct saved *saved = list_entry(link, struct saved, unmarked);

		list_remove(link);
		if (!saved->gone && !saved->closed) { /* the stream is back: a mark must not meet its next life */
			mark_well(server);
			continue;
		}
		server->marking = saved;
		server->marking_ms = server->now_ms;
		server->mark = (struct store_job){
			.task = saved->gone ? STORE_REMOVE : STORE_CLOSE,
			.generations = saved->generations, .number = saved->number
		};
		memcpy(server->mark.key, saved->key, sizeof server->mark.key);
		store_submit(server->store, &server->mark);
	}
}

/* The stream is closed or forgotten: its files are to say so. */
static void mark(struct server *server, struct saved *saved)
{
	if (link_listed(&saved->unmarked))
		server->retry_marks_ms = 0; /* if it has failed: now there is more that waits for it */
	if (link_listed(&saved->unmarked) || server->marking == saved)
		return;
	saved->mark = ++server->marks_begun;
	list_append(&server->unmarked, &saved->unmarked);
	go_on_marking(server);
}

int64_t states_failed(struct server *server, enum store_task task, const char key[HASH_TEXT],
		      const struct error *error)
{
	struct state_stats *stats = &server->state_stats;

	stats->errors++;
	if (!stats->failing || log_tap_open(&server->disk_errors, 1))
		log_error("state: %s", error->text);
	stats->failing = true;
	stats->task = task;
	snprintf(stats->why, sizeof stats->why, "%.255s", error->text);
	durable_failed(server, task, key, error);
	return server->now_ms + RETRY_MS;
}

void states_well(struct server *server, enum store_task task)
{
	struct state_stats *stats = &server->state_stats;

	if (!stats->failing || stats->task != task)
		return;
	log_notice("state: %s works again", server->config->state.dir);
	stats->failing = false;
}

static void speak(struct server *server, struct stream *stream)
{
	stream->may_speak = true;
	stream->may_end = stream->phase == STREAM_ENDING;
	list_remove(&stream->silent);
	publish_hidden(server, stream);
}

/* The files with this key are marked or removed, or cannot be: the stream that waits for it, if one does, goes on. */
static void speak_of(struct server *server, const char *key)
{
	for (struct link *link = list_first(&server->silent); link; link = list_next(&server->silent, link)) {
		struct stream *stream = list_entry(link, struct stream, silent);

		if (!strcmp(stream->key, key)) {
			speak(server, stream);
			return;
		}
	}
}

/* Keep no stream waiting for a disk that hangs.  Returns when to look again. */
static int64_t look_at_silent(struct server *server)
{
	struct link *link;

	if (list_empty(&server->silent))
		return INT64_MAX;
	if (server->marking && server->now_ms < server->marking_ms + SILENT_MS)
		return server->marking_ms + SILENT_MS;
	while ((link = list_first(&server->silent)))
		speak(server, list_entry(link, struct stream, silent));
	return INT64_MAX;
}

static void mark_done(struct server *server)
{
	struct saved *saved = server->marking;
	const struct store_job *task = &server->mark;

	server->marking = NULL;
	saved->marked |= task->task == STORE_CLOSE; /* also if it failed: it may be there */
	if (task->error.code) {
		server->retry_marks_ms = states_failed(server, task->task, task->key, &task->error);
		list_append(&server->failed_marks, &saved->unmarked);
	} else if (saved->gone && task->task == STORE_CLOSE) { /* forgotten meanwhile */
		list_prepend(&server->unmarked, &saved->unmarked);
		go_on_marking(server);
		return;
	} else {
		mark_well(server);
		if (task->task == STORE_REMOVE)
			free_saved(server, saved);
	}
	speak_of(server, task->key);
	go_on_marking(server);
}

int64_t states_retry(struct server *server)
{
	const bool later = !list_empty(&server->failed_marks) && server->now_ms < server->retry_marks_ms;
	struct link *link;
	int64_t silent_ms;

	while (!later && (link = list_last(&server->failed_marks))) /* they began before those that wait */
		list_prepend(&server->unmarked, link);
	go_on_marking(server);
	silent_ms = look_at_silent(server);
	return later && server->retry_marks_ms < silent_ms ? server->retry_marks_ms : silent_ms;
}

bool states_closed_on_disk(const struct server *server, const struct saved *saved)
{
	return saved->closed && saved->marked && server->marking != saved && !link_listed(&saved->unmarked);
}

bool states_marked(struct server *server, uint64_t mark)
{
	struct link *const oldest[] = {
		server->marking ? &server->marking->unmarked : NULL, list_first(&server->failed_marks),
		list_first(&server->unmarked)
	};

	for (size_t i = 0; i < sizeof oldest / sizeof oldest[0]; i++)
		if (oldest[i] && list_entry(oldest[i], struct saved, unmarked)->mark <= mark)
			return false;
	return true;
}

static int ms_until(uint64_t end_ns)
{
	const uint64_t now = clock_ns();

	return end_ns > now ? (int)((end_ns - now) / 1000000) : 0;
}

/* The loop is over: make the marks that wait, as far as the time until end_ns goes. */
static void finish_marking(struct server *server, uint64_t end_ns)
{
	struct pollfd store = { .fd = server->store ? store_fd(server->store) : -1, .events = POLLIN };
	struct store_job *task;

	while (server->marking && poll(&store, 1, ms_until(end_ns)) > 0)
		while ((task = store_collect(server->store)))
			if (task == &server->mark)
				mark_done(server);
}

void states_close(struct server *server, int timeout_ms)
{
	const uint64_t end_ns = clock_ns() + (uint64_t)timeout_ms * 1000000;
	struct table_entry *entry;
	struct error error;

	finish_marking(server, end_ns);
	if (store_close(server->store, ms_until(end_ns), &error))
		log_error("state: %s: %s; what it was given last is not saved", server->config->state.dir, error.text);
	else
		server->store = NULL;
	for (size_t i = 0; i < STATE_SLOTS && !server->store; i++)
		state_free(server->slots[i].state);
	while (server->saved.slot && (entry = table_next(&server->saved, NULL)))
		free_saved(server, list_entry(entry, struct saved, entry));
}

void states_forget(struct server *server, struct saved *saved)
{
	if (saved->slot) { /* being written: it is there by the time of the removal */
		saved->number = saved->slot->generation.number;
		saved->slot->saved = NULL;
	}
	saved->slot = NULL;
	saved->gone = true;
	mark(server, saved);
}

void states_begun(struct server *server, const struct stream *stream)
{
	struct saved *saved = states_find(server, stream->key);

	if (saved && saved->closed)
		states_forget(server, saved);
}

static void close_saved(struct server *server, struct saved *saved)
{
	if (saved->closed)
		return;
	saved->closed = true;
	mark(server, saved);
}

bool states_let_speak(struct server *server, struct stream *stream, bool end)
{
	struct saved *saved;

	if (end ? stream->may_end : stream->may_speak)
		return true;
	saved = find(server, stream->key);
	if (!saved || (!saved->gone && !end)) {
		stream->may_speak = true;
		return true;
	}
	if (!link_listed(&stream->silent)) {
		list_append(&server->silent, &stream->silent);
		if (!saved->gone && stream->reply)
			close_saved(server, saved);
		else if (!saved->gone)
			states_forget(server, saved);
	}
	return false;
}

void states_closed(struct server *server, struct stream *stream)
{
	struct saved *saved = states_find(server, stream->key);

	if (!saved)
		return;
	if (!stream->reply || stream->after || !states_has(saved, stream->epoch)) { /* not: those of an epoch before */
		states_forget(server, saved);
		return;
	}
	close_saved(server, saved);
}

uint64_t states_durable(struct server *server, struct stream *stream)
{
	const struct saved *saved = states_find(server, stream->key);
	uint64_t durable;

	if (!saved || saved->marked || (stream->before && stream->before->phase == STREAM_ENDING)) /* that one's */
		return stream->durable;
	durable = generations_durable(&saved->generations, stream->epoch, stream->reply, stream->got);
	assert(durable <= stream->next); /* states ahead of a stream that is rewound are gone before it is there */
	/* if not: what was told rests on a state that goes as soon as a newer one is there */
	if (durable > stream->durable)
		stream->durable = durable;
	return stream->durable;
}

/* --- slots --- */

void states_collect(struct server *server)
{
	struct store_job *task;

	while ((task = store_collect(server->store))) {
		struct slot *slot = task->owner;

		if (!slot) {
			mark_done(server);
		} else if (slot->use == SLOT_SAVING) {
			saving_written(server, slot);
		} else if (slot->use == SLOT_SERVING) {
			requests_read(server, slot);
		} else {
			resuming_read(server, slot);
		}
	}
}

void states_copied(struct server *server, struct job *job)
{
	struct slot *slot = list_entry(job, struct slot, job);

	if (slot->use == SLOT_SAVING)
		saving_copied(server, slot);
	else if (slot->use == SLOT_SERVING)
		requests_copied(server, slot);
	else
		resuming_copied(server, slot);
}

struct slot *states_slot(struct server *server)
{
	for (size_t i = 0; i < STATE_SLOTS; i++)
		if (server->slots[i].use == SLOT_FREE)
			return &server->slots[i];
	return NULL;
}

void states_free_slot(struct server *server, struct slot *slot)
{
	if (slot->stream)
		slot->stream->slot = NULL;
	if (slot->saved)
		slot->saved->slot = NULL;
	slot->stream = NULL;
	slot->saved = NULL;
	slot->request = NULL;
	slot->use = SLOT_FREE;
	server->slot_ms = server->now_ms;
	resuming_go_on(server);
}

/* --- messages that wait --- */

/* Is there room for so much more?  For one message alone there is: such as a state to import, limited by its socket. */
static bool may_hold(const struct server *server, size_t bytes)
{
	return !server->held_bytes || server->held_bytes + bytes <= 4 * server->config->limits.message_bytes;
}

bool held_add(struct server *server, struct held_list *list, const struct endpoint_message *message, bool router)
{
	struct held *held;
	size_t bytes = sizeof *held;

	for (size_t i = 0; i < message->n_frames; i++)
		bytes += message->frame[i].size;
	if (!may_hold(server, bytes))
		return false;
	held = malloc(bytes);
	if (!held)
		return false;
	*held = (struct held){ .router = router, .user = message->user, .n_frames = message->n_frames };
	for (size_t i = 0, at = 0; i < message->n_frames; at += message->frame[i++].size) {
		held->size[i] = message->frame[i].size;
		memcpy(held->bytes + at, message->frame[i].data, message->frame[i].size);
	}
	if (list->last)
		list->last->next = held;
	else
		list->first = held;
	list->last = held;
	server->held_bytes += bytes;
	return true;
}

struct held *held_pop(struct server *server, struct held_list *list)
{
	struct held *held = list->first;

	if (!held)
		return NULL;
	list->first = held->next;
	if (!list->first)
		list->last = NULL;
	server->held_bytes -= sizeof *held;
	for (size_t i = 0; i < held->n_frames; i++)
		server->held_bytes -= held->size[i];
	return held;
}

void held_message(const struct held *held, struct endpoint_message *ret_message)
{
	*ret_message = (struct endpoint_message){ .user = held->user, .n_frames = held->n_frames };
	for (size_t i = 0, at = 0; i < held->n_frames; at += held->size[i++]) {
		ret_message->frame[i].data = held->bytes + at;
		ret_message->frame[i].size = held->size[i];
	}
}

/* --- streams that wait for room --- */

struct held_list *waiting_find(struct server *server, const void *id, size_t id_size)
{
	struct table_entry *entry = list_empty(&server->waiting) ? NULL : table_find(&server->waiters, id, id_size);

	return entry ? &list_entry(entry, struct waiter, entry)->held : NULL;
}

struct held_list *waiting_get(struct server *server, const void *id, size_t id_size)
{
	struct held_list *list = waiting_find(server, id, id_size);
	struct waiter *waiter;

	if (list)
		return list;
	waiter = may_hold(server, sizeof *waiter) ? calloc(1, sizeof *waiter) : NULL;
	if (!waiter)
		return NULL;
	server->held_bytes += sizeof *waiter;
	waiter->id_size = id_size;
	memcpy(waiter->id, id, id_size);
	waiter->entry.key = waiter->id;
	waiter->entry.key_size = id_size;
	table_insert(&server->waiters, &waiter->entry);
	list_append(&server->waiting, &waiter->link);
	return &waiter->held;
}

struct held_list waiting_pop(struct server *server)
{
	struct waiter *waiter = list_entry(list_first(&server->waiting), struct waiter, link);
	struct held_list list = waiter->held;

	list_remove(&waiter->link);
	table_remove(&server->waiters, &waiter->entry);
	server->held_bytes -= sizeof *waiter;
	free(waiter);
	return list;
}
