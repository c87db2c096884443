/*
 * Writing a batch down for the kernels: segments, and for the chunked SSD the chunks of each.  Chunks start anew in
 * every window, so that a row's chunk is the same however many windows its segment joins.
 */
#include "gpu/batch.h"

#include "gpu/slots.h"

static size_t round_up(size_t n, size_t to)
{
	return (n + to - 1) / to * to;
}

static size_t min_size(size_t a, size_t b)
{
	return a < b ? a : b;
}

static size_t chunks_of(size_t rows)
{
	return (rows + CHUNK_ROWS - 1) / CHUNK_ROWS;
}

/* Tiles of 16 rows, and tiles on and below the diagonal of a chunk's score matrix. */
static size_t edge_of(size_t rows)
{
	return (rows + 15) / 16;
}

static size_t score_tiles(size_t rows)
{
	return edge_of(rows) * (edge_of(rows) + 1) / 2;
}

struct batch_limits batch_limits(size_t max_rows, size_t max_segments, size_t window, bool chunked)
{
	struct batch_limits limits = { .window = window, .rows = max_rows, .segments = max_segments };
	size_t windows = max_rows / window, whole = window / CHUNK_ROWS, rest = window % CHUNK_ROWS;

	if (chunked) {
		/* Every segment may end in an unfinished window; n rows have no more than n tiles of either kind. */
		size_t units = whole * (CHUNK_ROWS / 16) + edge_of(rest);
		size_t tiles = whole * CHUNK_TILES + score_tiles(rest);

		limits.units = windows * units + min_size(max_rows, max_segments * units);
		limits.chunks = windows * chunks_of(window) + max_rows / CHUNK_ROWS + max_segments;
		limits.score_tiles = windows * tiles + min_size(max_rows, max_segments * tiles);
	}
	limits.bytes = round_up(sizeof(struct batch_view), 16) +
		       round_up(max_segments * sizeof(struct segment_view), 16) +
		       limits.chunks * sizeof(struct chunk_view);
	return limits;
}

/* Where the next chunk's share of the buffers begins. */
struct place {
	size_t unit, scores;
};

/* Cut rows [from, to) of segment, which lie in one window, into chunks. */
static void add_chunks(const struct segment_view *segment, int from, int to, struct batch_view *view,
		       struct chunk_view *chunks, struct place *place)
{
	while (from < to) {
		int rows = to - from < CHUNK_ROWS ? to - from : CHUNK_ROWS;

		chunks[view->n_chunks++] = (struct chunk_view){
			.segment = view->n_segments,
			.row = segment->row + from,
			.first = from,
			.rows = rows,
			.unit = (int)place->unit,
			.scores = (int)place->scores,
		};
		place->unit += edge_of((size_t)rows);
		place->scores += score_tiles((size_t)rows);
		from += rows;
	}
}

static void add_rows(const struct segment *segment, size_t window, int hidden, size_t number_size,
		     struct row_view *rows)
{
	size_t row_bytes = (size_t)hidden * number_size;

	for (size_t r = 0; r < segment->rows; r++) {
		const struct window *w = &segment->windows[r / window];

		rows[r].in = w->rows + r % window * (size_t)hidden;
		rows[r].dtype = window_dtype(w, r % window);
		rows[r].out = (char *)w->hidden + r % window * row_bytes;
	}
}

static void add_segment(const struct batch_limits *limits, const struct segment *segment, struct batch_view *view,
			struct segment_view *segments, struct chunk_view *chunks, struct place *place)
{
	int window = (int)limits->window, n = (int)segment->rows;
	struct segment_view *s = &segments[view->n_segments];

	*s = (struct segment_view){
		.cache = segment->cache->memory,
		.parity = segment->cache->parity,
		.row = view->rows,
		.rows = n,
		.kept = n - n % window,
		.chunk = view->n_chunks,
	};
	for (int from = 0; limits->chunks > 0 && from < n; from += window) {
		add_chunks(s, from, from + window < n ? from + window : n, view, chunks, place);
		if (from + window <= n)
			s->kept_chunks = view->n_chunks - s->chunk;
	}
	s->chunks = view->n_chunks - s->chunk;
	view->rows += n;
	view->n_segments++;
}

struct batch_size batch_build(const struct batch_limits *limits, const struct batch *batch, int hidden,
			      size_t number_size, struct batch_view *view, uintptr_t device_view,
			      struct row_view *rows)
{
	size_t segments_at = round_up(sizeof(*view), 16);
	size_t chunks_at = segments_at + round_up(batch->n_segments * sizeof(struct segment_view), 16);
	struct segment_view *segments = (struct segment_view *)((char *)view + segments_at);
	struct chunk_view *chunks = (struct chunk_view *)((char *)view + chunks_at);
	struct batch_size size = { .segments = batch->n_segments };
	struct place place = { 0, 0 };

	view->rows = view->n_segments = view->n_chunks = 0;
	view->segments = (const struct segment_view *)(device_view + segments_at);
	view->chunks = (const struct chunk_view *)(device_view + chunks_at);
	for (size_t i = 0; i < batch->n_segments; i++) {
		add_rows(&batch->segments[i], limits->window, hidden, number_size, rows + view->rows);
		add_segment(limits, &batch->segments[i], view, segments, chunks, &place);
		if ((size_t)segments[i].chunks > size.longest)
			size.longest = (size_t)segments[i].chunks;
	}
	size.rows = (size_t)view->rows;
	size.chunks = (size_t)view->n_chunks;
	size.bytes = chunks_at + size.chunks * sizeof(struct chunk_view);
	return size;
}
