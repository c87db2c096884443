/* Cutting a batch into slices, and a slice's windows into the chunks of the scan. */
#include "model/cpu_slice.h"

#include <stdlib.h>

int cpu_slice_init(struct cpu_slice *slice, size_t capacity, size_t window, struct error *err)
{
	*slice = (struct cpu_slice){ .capacity = capacity, .window = window };
	slice->rows = calloc(capacity, sizeof *slice->rows);
	slice->runs = calloc(capacity, sizeof *slice->runs);
	slice->chunks = calloc(capacity, sizeof *slice->chunks);
	return slice->rows && slice->runs && slice->chunks ? 0 : error_memory(err, "rows of a slice");
}

void cpu_slice_clear(struct cpu_slice *slice)
{
	free(slice->rows);
	free(slice->runs);
	free(slice->chunks);
	*slice = (struct cpu_slice){ .capacity = 0 };
}

static size_t least(size_t a, size_t b)
{
	return a < b ? a : b;
}

/*
 * The chunks of a window of which `rows` rows are there, from row first of the run on.  How a chunk is computed depends
 * on how many rows it has in a whole window, not on how many are there.
 */
static void add_chunks(struct cpu_slice *slice, size_t first, size_t rows)
{
	const bool whole = rows == slice->window;

	for (size_t at = 0; at < rows; at += CPU_CHUNK) {
		const size_t chunk_rows = least(slice->window - at, CPU_CHUNK);

		slice->chunks[slice->n_chunks++] = (struct cpu_chunk){
			.run = slice->n_runs - 1,
			.first = first + at,
			.rows = least(rows - at, chunk_rows),
			.recurrent = chunk_rows == 1,
			.advance = whole || at + chunk_rows < rows,
			.keep = whole,
		};
	}
}

static void add_window(struct cpu_slice *slice, const struct window *window, size_t rows)
{
	struct cpu_run *run = &slice->runs[slice->n_runs - 1];

	add_chunks(slice, run->rows, rows);
	run->n_chunks = slice->n_chunks - run->first_chunk;
	run->rows += rows;
	for (size_t i = 0; i < rows; i++)
		slice->rows[slice->n_rows++] = (struct cpu_row){ .window = window, .index = i };
}

bool cpu_slice_next(struct cpu_slice *slice, struct cpu_cursor *cursor)
{
	slice->n_rows = slice->n_runs = slice->n_chunks = 0;
	for (; cursor->segment < cursor->batch->n_segments; cursor->segment++, cursor->window = 0) {
		const struct segment *segment = &cursor->batch->segments[cursor->segment];
		size_t done = cursor->window * slice->window;

		if (done < segment->rows && slice->n_rows + slice->window <= slice->capacity)
			slice->runs[slice->n_runs++] = (struct cpu_run){
				.cache = segment->cache->data,
				.first = slice->n_rows,
				.first_chunk = slice->n_chunks,
			};
		for (; done < segment->rows; done += slice->window) {
			if (slice->n_rows + slice->window > slice->capacity)
				return true;
			add_window(slice, &segment->windows[cursor->window++],
				   least(segment->rows - done, slice->window));
		}
	}
	return slice->n_rows > 0;
}
