/*
 * Place a message's rows: drop those that came before, mind those that are missing, keep to the peer's credit.
 *
 * All rows are accepted or none: they are copied, as they are, to the stream's own blocks behind the accepted ones and
 * checked on the way; only when all is well do the counts move.
 */
#include <inttypes.h>
#include <stdio.h>

#include "daemon/arrival.h"
#include "daemon/server.h"

/* The message's row, of which a number is not finite. */
static int refuse_row(const struct server *server, const struct arrival *arrival, uint64_t row, const void *src,
		      struct error *err)
{
	const size_t hidden_size = server->model->shape.hidden_size;

	dtype_widen(arrival->message.dtype, src, hidden_size, server->scratch);
	return error_set(err, REFUSED_NON_FINITE, "row %" PRIu64 ", column %zu of the message is not finite", row,
			 dtype_finite(server->scratch, hidden_size));
}

/*
 * Copy n of the message's rows, from first on, to dst [n, hidden_size] and check them.  Each keeps its dtype and begins
 * where it would in float32; tokens become float32.
 */
static int copy_rows(const struct server *server, const struct arrival *arrival, uint64_t first, size_t n, float *dst,
		     struct error *err)
{
	const struct message *m = &arrival->message;
	size_t hidden_size = server->model->shape.hidden_size;
	size_t row_bytes = dtype_size(m->dtype) * (m->columns ? m->columns : 1);
	const unsigned char *src = arrival->payload + first * row_bytes;
	size_t good;

	if (!dtype_is_float(m->dtype)) {
		if (model_embed(server->model, m->dtype, src, n, dst, err))
			return err->code = REFUSED_BAD_TOKEN;
		return 0;
	}
	good = dtype_copy_rows(m->dtype, src, n, hidden_size, dst, hidden_size * sizeof *dst);
	return good < n ? refuse_row(server, arrival, first + good, src + good * row_bytes, err) : 0;
}

/* Check the rows that are dropped as duplicates: a message is refused for any of its rows. */
static int check_dropped(struct server *server, const struct arrival *arrival, uint64_t n, struct error *err)
{
	for (uint64_t i = 0; i < n; i++)
		if (copy_rows(server, arrival, i, 1, server->scratch, err))
			return err->code;
	return 0;
}

/*
 * Write the message's rows from skip on behind the stream's accepted ones, at positions from pos on, without counting
 * them.  On failure the stream is as before.
 */
static int fill(struct server *server, struct stream *stream, const struct arrival *arrival, uint64_t skip,
		uint64_t pos, struct error *err)
{
	size_t window = server->config->window, hidden_size = server->model->shape.hidden_size;
	const enum dtype dtype = arrival->message.dtype, kept = dtype_is_float(dtype) ? dtype : DTYPE_FLOAT32;
	struct block *last = stream->last_block, *unsubmitted = stream->unsubmitted;
	uint64_t count = stream->accepted;
	int rc = check_dropped(server, arrival, skip, err);

	for (uint64_t i = skip; !rc && i < arrival->message.rows;) {
		size_t at = count % window;
		size_t n = window - at;
		struct block *block;

		if (n > arrival->message.rows - i)
			n = arrival->message.rows - i;
		if (!at && stream_add_block(server, stream, err)) {
			rc = REFUSED_INTERNAL;
			break;
		}
		block = stream->last_block;
		block->arrived_ns = server->now_ns;
		rc = copy_rows(server, arrival, i, n, block->rows + at * hidden_size, err);
		for (size_t k = at; k < at + n; k++) {
			block->position[k] = pos++;
			block->dtype[k] = kept;
		}
		i += n;
		count += n;
	}
	if (!rc)
		return 0;
	while ((last ? last->next : stream->blocks)) { /* give back what was added */
		struct block **at = last ? &last->next : &stream->blocks;
		struct block *block = *at;

		*at = block->next;
		block_give(server, block);
	}
	stream->last_block = last;
	stream->unsubmitted = unsubmitted;
	return err->code;
}

/* Count the n rows that fill wrote, the first of them at pos. */
static void count_rows(struct server *server, struct stream *stream, const struct message *m, uint64_t n, uint64_t pos)
{
	if (!n)
		return;
	if (m->has_t) {
		struct block *block = stream->last_block;

		block->has_t = true;
		block->t = m->t;
		block->t_row = (size_t)((stream->accepted + n - 1) % server->config->window);
	}
	server->stats.windows_in += (stream->accepted + n) / server->config->window -
				    stream->accepted / server->config->window;
	stream->accepted += n;
	stream->next = pos + n;
	saving_note(server, stream);
	if (stream->feeder) {
		stream->feeder->outstanding += n;
		server->stats.credit_stalls += stream->feeder->outstanding + n > server->config->limits.credit_rows;
	}
	server->stats.rows_in += n;
	stream_flush_later(server, stream);
}

/* What to do with rows at gap_pos when the stream expects others. */
static enum gap_policy gap_policy(const struct server *server, const struct arrival *arrival)
{
	if (server->config->streams.on_gap != GAP_AUTO)
		return (enum gap_policy)server->config->streams.on_gap;
	return arrival->router ? GAP_REJECT : GAP_RESET;
}

/* Rows are missing before pos: refuse, say so and go on, or begin a new life. */
static int mind_the_gap(struct server *server, struct arrival *arrival, struct stream *stream, uint64_t pos,
			struct stream **ret_life, struct error *err)
{
	char text[160];

	snprintf(text, sizeof text, "rows %" PRIu64 " to %" PRIu64 " are missing", arrival->expected, pos - 1);
	server->stats.gaps++;
	if (gap_policy(server, arrival) == GAP_REJECT) {
		arrival->has_expected = true;
		return error_set(err, REFUSED_GAP, "pos %" PRIu64 ", expected %" PRIu64 ": %s", pos, arrival->expected,
				 text);
	}
	if (gap_policy(server, arrival) == GAP_SKIP)
		return 0;
	if (stream_reset(server, stream, text, ret_life, err))
		return err->code;
	(*ret_life)->source_epoch = arrival->message.epoch;
	(*ret_life)->source_origin = pos;
	return 0;
}

static int check_credit(struct server *server, struct arrival *arrival, uint64_t n, struct error *err)
{
	uint64_t credit = server->config->limits.credit_rows;

	if (!n || !arrival->router || arrival->peer->outstanding + n <= credit)
		return 0; /* publishers cannot be told: the loop stops reading them instead */
	arrival->has_expected = true;
	return error_set(err, REFUSED_NO_CREDIT,
			 "%" PRIu64 " rows beside %" PRIu64 " not done exceed the credit of %" PRIu64 "%s", n,
			 arrival->peer->outstanding, credit, n > credit ? ": split the message" : "");
}

int arrival_place(struct server *server, struct arrival *arrival, struct stream *stream, uint64_t origin,
		  struct stream **ret_stream, struct error *err)
{
	const struct message *m = &arrival->message;
	uint64_t rows = m->has_shape ? m->rows : 0, skip = 0, pos, n;
	struct stream *life = NULL;
	int rc = 0;

	arrival->expected = stream->next + origin;
	pos = m->has_pos ? m->pos : arrival->expected;
	if (pos < arrival->expected) {
		skip = arrival->expected - pos < rows ? arrival->expected - pos : rows;
		pos = arrival->expected;
	}
	n = rows - skip;
	/* an end may come too early as well */
	if (pos > arrival->expected && (n || gap_policy(server, arrival) == GAP_REJECT))
		rc = mind_the_gap(server, arrival, stream, pos, &life, err);
	if (!rc)
		rc = check_credit(server, arrival, n, err);
	pos = life ? 0 : pos - origin;
	if (!rc)
		rc = fill(server, life ? life : stream, arrival, skip, pos, err);
	if (rc) {
		if (life)
			stream_free(server, life);
		return rc;
	}
	server->stats.duplicate_rows += skip;
	if (!life && n && pos > stream->next)
		publish_event(server, stream, EVENT_GAP, pos, "rows are missing before this position");
	if (life) {
		stream_install(server, life);
		stream = life;
	}
	count_rows(server, stream, m, n, pos);
	*ret_stream = stream;
	return 0;
}
