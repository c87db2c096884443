/*
 * The middle of the straight line: full windows join a batch, the worker runs it, its streams move on.
 *
 * Batching is work-conserving: whenever the device has room, all that is ready goes, one window a stream first and
 * then, in turn, further windows of streams that have them queued, which makes long segments of replayed recordings.
 */
#include "daemon/server.h"

#include <string.h>

#define FAILURES_MAX 3
#define REST_MS 250 /* after a batch has failed; four times as long after the next one */
#define RETRY_MS 5  /* without memory */

/* --- forming a batch --- */

/* Share the batch's rows out among the lane's ready streams: job->entries[].stream and .rows. */
static void share_out(struct server *server, struct server_job *job)
{
	struct lane *lane = job->lane;
	size_t room = lane->device->max_rows / lane->device->window;
	struct link *link = list_first(&lane->ready), *next;
	bool grew = true;

	job->n_entries = 0;
	for (; link && room && job->n_entries < lane->device->max_segments; link = next) {
		struct stream *stream = list_entry(link, struct stream, ready);
		size_t rows = stream_more(server, stream, 0);

		next = list_next(&lane->ready, link);
		if (rows) {
			job->entries[job->n_entries++] = (struct entry){ .stream = stream, .rows = rows };
			room--;
		} else { /* what made it ready was taken away: a stall, a rewind */
			list_remove(link);
		}
	}
	while (grew) {
		grew = false;
		for (size_t i = 0; i < job->n_entries && room; i++) {
			size_t more = stream_more(server, job->entries[i].stream, job->entries[i].rows);

			job->entries[i].rows += more;
			room -= more > 0;
			grew |= more > 0;
		}
	}
}

/* For the hidden states of a block's first rows, the first of them at `first` in the life. */
static struct hidden *hidden_of(struct server *server, const struct block *block, uint64_t first, size_t rows)
{
	struct hidden *hidden = hidden_take(server, first, rows);

	if (!hidden)
		return NULL;
	hidden->arrived_ns = block->arrived_ns;
	hidden->has_t = block->has_t;
	hidden->t = block->t;
	hidden->t_row = block->t_row;
	memcpy(hidden->position, block->position, rows * sizeof *hidden->position);
	return hidden;
}

/* Give an entry's hidden states back unused. */
static void drop_hidden(struct entry *entry)
{
	while (entry->hidden) {
		struct hidden *hidden = entry->hidden;

		entry->hidden = hidden->next;
		hidden_release(hidden);
	}
}

/* Fill in an entry's segment and windows.  false: out of memory for hidden states. */
static bool fill_segment(struct server *server, struct entry *entry, struct segment *segment, struct window *windows)
{
	size_t window = server->config->window;
	struct stream *stream = entry->stream;
	struct block *block = stream->unsubmitted;
	struct hidden **last = &entry->hidden;

	entry->hidden = NULL;
	for (size_t row = 0; row < entry->rows; row += window, block = block->next, windows++) {
		size_t rows = entry->rows - row < window ? entry->rows - row : window;

		*last = hidden_of(server, block, stream->submitted + row, rows);
		if (!*last) {
			drop_hidden(entry);
			return false;
		}
		windows->rows = block->rows;
		windows->dtype = block->dtype;
		windows->hidden = (*last)->data;
		last = &(*last)->next;
	}
	segment->cache = stream->cache;
	segment->rows = entry->rows;
	return true;
}

/* The entry is in the batch: its rows are no longer waiting. */
static void submit_rows(struct server *server, struct entry *entry)
{
	struct stream *stream = entry->stream;
	size_t window = server->config->window;

	for (size_t n = entry->rows / window; n > 0; n--)
		stream->unsubmitted = stream->unsubmitted->next;
	if (stream->flushed < stream->submitted + entry->rows)
		stream->flushed = stream->submitted + entry->rows;
	stream->submitted += entry->rows / window * window;
	stream->in_flight++;
	if (stream->flushed == stream->accepted) {
		list_remove(&stream->unflushed);
	} else if (link_listed(&stream->unflushed)) { /* newer rows have begun to wait */
		stream->unflushed_ms = server->now_ms;
		list_append(&server->unflushed, &stream->unflushed);
	}
	list_remove(&stream->ready);
	stream_wake(server, stream); /* what it has left waits behind the others */
}

static bool form(struct server *server, struct server_job *job)
{
	struct window *windows = job->windows;
	size_t n = 0, rows = 0;

	share_out(server, job);
	for (; n < job->n_entries; n++) {
		struct entry *entry = &job->entries[n];

		job->segments[n].windows = windows;
		if (!fill_segment(server, entry, &job->segments[n], windows))
			break;
		windows += (entry->rows + server->config->window - 1) / server->config->window;
	}
	if (n < job->n_entries && log_tap_open(&server->shortages, 1))
		log_warning("out of memory for hidden states: %zu of %zu streams wait", job->n_entries - n,
			    job->n_entries);
	job->n_entries = n;
	for (size_t i = 0; i < n; i++) {
		rows += job->entries[i].rows;
		submit_rows(server, &job->entries[i]);
	}
	if (n)
		metrics_batch(&server->metrics, rows);
	job->job.batch = (struct batch){ .segments = job->segments, .n_segments = n };
	return n > 0;
}

/* When to try again if there is no memory, or a batch has failed. */
static int64_t start_lane(struct server *server, struct lane *lane)
{
	if (lane->failures && lane->jobs_busy)
		return INT64_MAX; /* until all that went down with the failed batch is collected */
	if (lane->failures && server->now_ms < lane->rests_ms)
		return list_empty(&lane->ready) ? INT64_MAX : lane->rests_ms;
	while (lane->jobs_busy < lane->device->depth && !list_empty(&lane->ready)) {
		struct server_job *job = &lane->jobs[lane->jobs[0].busy ? 1 : 0];

		if (!form(server, job))
			return list_empty(&lane->ready) ? INT64_MAX : server->now_ms + RETRY_MS;
		job->busy = true;
		lane->jobs_busy++;
		server->stats.batches++;
		worker_submit(lane->worker, &job->job);
	}
	return INT64_MAX;
}

int64_t batch_start(struct server *server)
{
	int64_t due = INT64_MAX;

	for (size_t i = 0; i < server->n_lanes; i++) {
		const int64_t lane_due = start_lane(server, &server->lanes[i]);

		due = lane_due < due ? lane_due : due;
	}
	return due;
}

/* --- after a batch --- */

/* The entry's windows are computed: the cache has moved on, hidden states go to the outbox. */
static void advance(struct server *server, struct entry *entry, const struct job *job)
{
	size_t window = server->config->window;
	struct stream *stream = entry->stream;

	for (size_t n = entry->rows / window; n > 0; n--) {
		struct block *block = stream->blocks;

		stream->blocks = block->next;
		if (stream->last_block == block)
			stream->last_block = NULL;
		block_give(server, block);
		server->stats.windows++;
	}
	stream->computed += entry->rows / window * window;
	if (!entry->hidden)
		return;
	for (struct hidden *hidden = entry->hidden; hidden; hidden = hidden->next) {
		hidden->started_ns = job->started_ns;
		hidden->ended_ns = job->ended_ns;
	}
	if (stream->outbox)
		stream->last_outbox->next = entry->hidden;
	else
		stream->outbox = entry->hidden;
	for (stream->last_outbox = entry->hidden; stream->last_outbox->next;)
		stream->last_outbox = stream->last_outbox->next;
}

/* The batch failed and no cache moved: its rows wait again. */
static void take_back(struct server *server, struct entry *entry)
{
	struct stream *stream = entry->stream;

	drop_hidden(entry);
	stream->submitted = stream->computed;
	stream->flushed = stream->computed;
	stream->unsubmitted = stream->blocks;
	stream_wake(server, stream);
}

/* What fails again, although it was left in peace for a while, is no accident: the device is of no more use. */
static int judge(struct server *server, struct lane *lane, const struct error *error, struct error *err)
{
	server->stats.failed_batches++;
	log_error("batch failed: %s", error->text);
	if (error->code == ERR_DEVICE_LOST || ++lane->failures >= FAILURES_MAX) {
		*err = *error;
		return error->code;
	}
	lane->rests_ms = server->now_ms + (REST_MS << 2 * (lane->failures - 1));
	return 0;
}

static int finish_batch(struct server *server, struct server_job *job, struct error *err)
{
	const struct error *error = &job->job.error;
	struct lane *lane = job->lane;
	int rc = 0;

	job->busy = false;
	lane->jobs_busy--;
	if (!error->code)
		lane->failures = 0;
	else if (!job->job.skipped)
		rc = judge(server, lane, error, err);
	for (size_t i = 0; i < job->n_entries; i++) {
		struct entry *entry = &job->entries[i];

		entry->stream->in_flight--;
		if (error->code)
			take_back(server, entry);
		else
			advance(server, entry, &job->job);
	}
	for (size_t i = 0; i < job->n_entries && !error->code; i++)
		publish_hidden(server, job->entries[i].stream);
	return rc;
}

/* A copy failed for its stream alone, unless the device is lost. */
static int finish_copy(struct server *server, struct job *job, struct error *err)
{
	const bool lost = job->error.code == ERR_DEVICE_LOST;

	if (lost)
		*err = job->error;
	states_copied(server, job);
	return lost ? ERR_DEVICE_LOST : 0;
}

int batch_finish(struct server *server, struct error *err)
{
	struct job *done;
	int rc = 0;

	for (size_t i = 0; i < server->n_lanes; i++)
		while (!rc && (done = worker_collect(server->lanes[i].worker)))
			rc = done->kind == JOB_BATCH ?
				     finish_batch(server, list_entry(done, struct server_job, job), err) :
				     finish_copy(server, done, err);
	return rc;
}
