/*
 * A state file from anywhere, as import takes them: no crash, and one that was accepted is the same after it has been
 * written and read again.  Its checksum may be missing, or else no input would come further than that.
 */
#include <string.h>

#include "daemon/statefile.h"
#include "tests/fuzz.h"

#define WINDOW 3
#define MODEL "0123456789abcdef0123456789abcdef"

static struct shape shape = {
	.num_layers = 1, .hidden_size = 2, .d_inner = 4, .num_heads = 2, .head_dim = 2, .n_groups = 1,
	.state_size = 1, .conv_kernel = 2, .gated_norm_groups = 1, .norm_epsilon = 1e-5f, .dt_max = 1
};

static void must_be_equal(const struct state *a, const struct state *b)
{
	must(a->stream_size == b->stream_size && !memcmp(a->stream, b->stream, a->stream_size));
	must(a->epoch == b->epoch && a->position == b->position && a->emitted == b->emitted);
	must(a->source_epoch == b->source_epoch && a->source_origin == b->source_origin);
	must(a->reply == b->reply && a->got == b->got && a->window == b->window);
	must(!strcmp(a->model, b->model) && !strcmp(a->device, b->device));
	must(a->pending_rows == b->pending_rows && a->pending_rows < WINDOW);
	must(!memcmp(a->pending, b->pending, a->pending_rows * shape.hidden_size * sizeof *a->pending));
	must(!memcmp(a->positions, b->positions, a->pending_rows * sizeof *a->positions));
	must(!memcmp(a->cache, b->cache, shape_cache_floats(&shape) * sizeof *a->cache));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct state *state, *again;
	struct error err = { 0 };
	void *bytes;
	size_t n;
	int rc;

	if (!state)
		must(!shape_derive(&shape, &err) && !state_new(&shape, WINDOW, &state, &err) &&
		     !state_new(&shape, WINDOW, &again, &err));
	rc = statefile_decode(data, size, "fuzz", false, &shape, MODEL, WINDOW, state, &err);
	if (rc) {
		must_explain(rc, &err);
		return 0;
	}
	must(!statefile_encode(&shape, state, &bytes, &n, &err));
	must(!statefile_decode(bytes, n, "again", true, &shape, MODEL, WINDOW, again, &err));
	must_be_equal(state, again);
	free(bytes);
	return 0;
}
