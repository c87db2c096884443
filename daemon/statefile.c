/*
 * State files.  The checksum covers every byte of the file, its own place taken as zeros; so whatever a damaged disk
 * or a crash leaves behind is either the state that was written or known to be none.
 */
#include "daemon/statefile.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/safetensors.h"

#define FORMATS "mamba2d-state-" /* and a version: */
#define FORMAT FORMATS "1"
#define CHECKSUM_TEXT (HASH_TEXT - 1)
#define NAME_MAX_TENSOR 48
#define POSITION_TEXT 21 /* the longest number and a comma */
#define BLOCK ((size_t)SAFETENSORS_BLOCK) /* direct writes are of whole ones, in the file and in memory */
#define DIRECT_LEAST ((size_t)1 << 20)    /* bytes for which they pay */
#define WRITE_BYTES ((size_t)4 << 20)     /* at a time */

static size_t cache_bytes(const struct shape *shape)
{
	return shape_cache_floats(shape) * sizeof(float);
}

static size_t pending_bytes(const struct shape *shape, const struct state *state)
{
	return state->pending_rows * shape->hidden_size * sizeof(float);
}

int state_new(const struct shape *shape, size_t window, struct state **ret_state, struct error *err)
{
	struct state *state = calloc(1, sizeof *state);

	if (state) {
		state->cache = aligned_alloc(BLOCK, (cache_bytes(shape) + BLOCK - 1) / BLOCK * BLOCK);
		state->pending = malloc(window * shape->hidden_size * sizeof *state->pending);
		state->positions = malloc(window * sizeof *state->positions);
	}
	if (!state || !state->cache || !state->pending || !state->positions) {
		state_free(state);
		return error_memory(err, "a stream's state");
	}
	*ret_state = state;
	return 0;
}

void state_free(struct state *state)
{
	if (!state)
		return;
	free(state->cache);
	free(state->pending);
	free(state->positions);
	free(state);
}

uint64_t state_next(const struct state *state)
{
	return state->pending_rows ? state->positions[state->pending_rows - 1] + 1 : state->position;
}

/* --- the header --- */

/* The tensors in the order of the canonical layout, then pending.  Free *ret_entries and *ret_names with free. */
static int list_tensors(const struct shape *shape, uint64_t pending_rows, struct safetensors_entry **ret_entries,
			char **ret_names, struct error *err)
{
	size_t n = 2 * shape->num_layers;
	struct safetensors_entry *entries = calloc(n + 1, sizeof *entries);
	char *names = calloc(n, NAME_MAX_TENSOR);

	if (!entries || !names) {
		free(entries);
		free(names);
		return error_memory(err, "a state's header");
	}
	for (size_t layer = 0; layer < shape->num_layers; layer++) {
		char *conv = names + 2 * layer * NAME_MAX_TENSOR, *ssm = conv + NAME_MAX_TENSOR;

		snprintf(conv, NAME_MAX_TENSOR, "layers.%zu.conv_state", layer);
		snprintf(ssm, NAME_MAX_TENSOR, "layers.%zu.ssm_state", layer);
		entries[2 * layer] = (struct safetensors_entry){
			.name = conv, .dtype = DTYPE_FLOAT32, .rank = 2,
			.shape = { shape->conv_dim, shape->conv_kernel - 1 }
		};
		entries[2 * layer + 1] = (struct safetensors_entry){
			.name = ssm, .dtype = DTYPE_FLOAT32, .rank = 3,
			.shape = { shape->num_heads, shape->head_dim, shape->state_size }
		};
	}
	entries[n] = (struct safetensors_entry){
		.name = "pending", .dtype = DTYPE_FLOAT32, .rank = 2, .shape = { pending_rows, shape->hidden_size }
	};
	*ret_entries = entries;
	*ret_names = names;
	return 0;
}

static void to_hex(const unsigned char *bytes, size_t n, char *text)
{
	for (size_t i = 0; i < n; i++)
		snprintf(text + 2 * i, 3, "%02x", bytes[i]);
	text[2 * n] = '\0';
}

/* The positions of the pending rows, with commas between them; free with free. */
static char *positions_text(const struct state *state)
{
	char *text = malloc(state->pending_rows * POSITION_TEXT + 1), *at = text;

	if (!text)
		return NULL;
	*at = '\0';
	for (size_t i = 0; i < state->pending_rows; i++)
		at += sprintf(at, "%s%" PRIu64, i ? "," : "", state->positions[i]);
	return text;
}

static int make_header(const struct shape *shape, const struct state *state, void **ret_header, size_t *ret_size,
		       struct error *err)
{
	const bool skips = state_next(state) != state->position + state->pending_rows;
	enum { STREAM, EPOCH, POSITION, EMITTED, SOURCE_EPOCH, SOURCE_ORIGIN, WINDOW, GOT, N_TEXTS };
	char texts[N_TEXTS][2 * MESSAGE_STREAM_MAX + 1];
	struct safetensors_entry *entries;
	char *names, *positions;
	struct safetensors_string metadata[] = {
		{ "format", FORMAT }, { "stream", texts[STREAM] }, { "epoch", texts[EPOCH] },
		{ "position", texts[POSITION] }, { "emitted", texts[EMITTED] }, { "source_epoch", texts[SOURCE_EPOCH] },
		{ "source_origin", texts[SOURCE_ORIGIN] }, { "model", state->model }, { "window", texts[WINDOW] },
		{ "device", state->device }, { "checksum", "00000000000000000000000000000000" },
		{ NULL, NULL }, { NULL, NULL } /* got, if somebody gets replies; positions, where some were skipped */
	};
	size_t n_metadata = sizeof metadata / sizeof metadata[0] - 2;
	const uint64_t numbers[N_TEXTS] = {
		[EPOCH] = state->epoch, [POSITION] = state->position, [EMITTED] = state->emitted,
		[SOURCE_EPOCH] = state->source_epoch, [SOURCE_ORIGIN] = state->source_origin, [WINDOW] = state->window,
		[GOT] = state->got
	};
	int rc;

	for (size_t i = EPOCH; i < N_TEXTS; i++)
		snprintf(texts[i], sizeof texts[i], "%" PRIu64, numbers[i]);
	to_hex(state->stream, state->stream_size, texts[STREAM]);
	rc = list_tensors(shape, state->pending_rows, &entries, &names, err);
	if (rc)
		return rc;
	positions = skips ? positions_text(state) : NULL;
	if (state->reply)
		metadata[n_metadata++] = (struct safetensors_string){ "got", texts[GOT] };
	if (skips)
		metadata[n_metadata++] = (struct safetensors_string){ "positions", positions };
	rc = skips && !positions ? error_memory(err, "a state's header")
				 : safetensors_header(entries, 2 * shape->num_layers + 1, metadata, n_metadata,
						      ret_header, ret_size, err);
	free(entries);
	free(names);
	free(positions);
	return rc;
}

/* Where in the header [size] the checksum's digits stand; NULL if nowhere. */
static const char *find_checksum(const char *header, size_t size)
{
	static const char key[] = "\"checksum\"";
	const char *at = memmem(header, size, key, sizeof key - 1), *end = header + size;

	if (!at)
		return NULL;
	for (at += sizeof key - 1; at < end && (*at == ' ' || *at == ':'); at++)
		;
	return end - at > CHECKSUM_TEXT + 1 && *at == '"' && at[1 + CHECKSUM_TEXT] == '"' ? at + 1 : NULL;
}

/* The checksum of header, cache and pending rows, with zeros for the digits at place. */
static int checksum(const char *header, size_t header_size, const char *place, const void *data, size_t data_size,
		    const void *more, size_t more_size, char ret_text[HASH_TEXT], struct error *err)
{
	static const char zeros[] = "00000000000000000000000000000000";
	struct hash *hash;
	int rc = hash_new(&hash, err);

	if (rc)
		return rc;
	hash_update(hash, header, (size_t)(place - header));
	hash_update(hash, zeros, CHECKSUM_TEXT);
	hash_update(hash, place + CHECKSUM_TEXT, header_size - (size_t)(place - header) - CHECKSUM_TEXT);
	hash_update(hash, data, data_size);
	hash_update(hash, more, more_size);
	hash_text(hash, ret_text);
	hash_free(hash);
	return 0;
}

/* --- writing --- */

/* The header with its checksum; *ret_header is to be freed in any case. */
static int sealed_header(const struct shape *shape, const struct state *state, char **ret_header, size_t *ret_size,
			 struct error *err)
{
	void *header = NULL;
	size_t size;
	char text[HASH_TEXT];
	const char *place;
	int rc = make_header(shape, state, &header, &size, err);

	*ret_header = header;
	if (rc)
		return rc;
	place = find_checksum(header, size);
	assert(place);
	rc = checksum(header, size, place, state->cache, cache_bytes(shape), state->pending,
		      pending_bytes(shape, state), text, err);
	if (!rc)
		memcpy((char *)header + (place - (char *)header), text, CHECKSUM_TEXT);
	*ret_size = size;
	return rc;
}

/* Go on through the page cache; false if that is the way already. */
static bool stop_direct(int fd)
{
	const int flags = fcntl(fd, F_GETFL);

	return flags >= 0 && (flags & O_DIRECT) && fcntl(fd, F_SETFL, flags & ~O_DIRECT) == 0;
}

static int write_all(int fd, const void *data, size_t size)
{
	const char *at = data;

	while (size) {
		ssize_t n = write(fd, at, size < WRITE_BYTES ? size : WRITE_BYTES);

		/* a file system may want larger blocks, or have written a part of one */
		if (n < 0 && (errno == EINTR || (errno == EINVAL && stop_direct(fd))))
			continue;
		if (n <= 0)
			return -1;
		at += n;
		size -= (size_t)n;
	}
	return 0;
}

/*
 * Write the cache, which is much and will not be read soon, past the page cache if the file system can: copying it
 * there would cost more than all else that is done to it.  It lies at a whole block in memory and behind the header.
 */
static int write_cache(int fd, const char *cache, size_t size)
{
	const size_t blocks = size - size % BLOCK;
	int rc;

	if (size < DIRECT_LEAST || fcntl(fd, F_SETFL, O_DIRECT))
		return write_all(fd, cache, size);
	rc = write_all(fd, cache, blocks);
	stop_direct(fd);
	return rc ? rc : write_all(fd, cache + blocks, size - blocks);
}

int statefile_write(int folder, const char *name, const struct shape *shape, const struct state *state,
		    struct error *err)
{
	char part[256];
	char *header;
	size_t size;
	int fd, rc = sealed_header(shape, state, &header, &size, err);

	if (rc)
		goto out;
	snprintf(part, sizeof part, "%.200s.part", name);
	fd = openat(folder, part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0) {
		rc = error_system(err, "%s", part);
		goto out;
	}
	if (write_all(fd, header, size) || write_cache(fd, (const char *)state->cache, cache_bytes(shape)) ||
	    write_all(fd, state->pending, pending_bytes(shape, state)) || fdatasync(fd))
		rc = error_system(err, "%s", part);
	if (close(fd) && !rc)
		rc = error_system(err, "%s", part);
	if (!rc && renameat(folder, part, folder, name))
		rc = error_system(err, "%s: rename", part);
	if (!rc && fsync(folder)) {
		rc = error_system(err, "%s: fsync of the folder", name);
		unlinkat(folder, name, 0);
	}
	if (rc)
		unlinkat(folder, part, 0);
out:
	free(header);
	return rc;
}

int statefile_encode(const struct shape *shape, const struct state *state, void **ret_bytes, size_t *ret_size,
		     struct error *err)
{
	char *header, *bytes;
	size_t size;
	int rc = sealed_header(shape, state, &header, &size, err);

	bytes = rc ? NULL : realloc(header, size + cache_bytes(shape) + pending_bytes(shape, state));
	if (!bytes) {
		free(header);
		return rc ? rc : error_memory(err, "a state's bytes");
	}
	memcpy(bytes + size, state->cache, cache_bytes(shape));
	memcpy(bytes + size + cache_bytes(shape), state->pending, pending_bytes(shape, state));
	*ret_bytes = bytes;
	*ret_size = size + cache_bytes(shape) + pending_bytes(shape, state);
	return 0;
}

/* --- reading --- */

static int read_number(const struct safetensors *file, const char *name, const char *key, bool optional,
		       uint64_t *value, struct error *err)
{
	const char *text = safetensors_metadata(file, key);
	char *end;

	if (!text && optional)
		return 0;
	errno = 0;
	*value = text ? strtoull(text, &end, 10) : 0;
	if (!text || *text < '0' || *text > '9' || *end || errno)
		return error_set(err, ERR_FORMAT, "%s: metadata %s: expected a number", name, key);
	return 0;
}

static int read_stream(const struct safetensors *file, const char *name, struct state *state, struct error *err)
{
	const char *hex = safetensors_metadata(file, "stream");
	size_t length = hex ? strlen(hex) : 0;

	if (length % 2 || length < 2 || length > 2 * MESSAGE_STREAM_MAX ||
	    strspn(hex, "0123456789abcdefABCDEF") != length)
		return error_set(err, ERR_FORMAT, "%s: metadata stream: expected a stream id in hex", name);
	state->stream_size = length / 2;
	for (size_t i = 0; i < state->stream_size; i++) {
		unsigned byte;

		sscanf(hex + 2 * i, "%2x", &byte);
		state->stream[i] = (unsigned char)byte;
	}
	return 0;
}

/* What it is a state of, and whether that is what we have. */
static int read_metadata(const struct safetensors *file, const char *name, const char *fingerprint, size_t window,
			 struct state *state, struct error *err)
{
	const char *format = safetensors_metadata(file, "format"), *model = safetensors_metadata(file, "model");
	const char *device = safetensors_metadata(file, "device");

	if (!format || strcmp(format, FORMAT))
		return error_set(err, ERR_UNSUPPORTED, "%s: format %s, expected " FORMAT, name,
				 format ? format : "missing");
	if (!model || strcmp(model, fingerprint))
		return error_set(err, ERR_UNSUPPORTED, "%s: of model %s, the model here is %s", name,
				 model ? model : "unknown", fingerprint);
	state->source_origin = state->got = 0;
	state->reply = safetensors_metadata(file, "got") != NULL;
	if (read_stream(file, name, state, err) || read_number(file, name, "epoch", false, &state->epoch, err) ||
	    read_number(file, name, "position", false, &state->position, err) ||
	    read_number(file, name, "emitted", false, &state->emitted, err) ||
	    read_number(file, name, "window", false, &state->window, err))
		return err->code;
	state->source_epoch = state->epoch;
	if (read_number(file, name, "source_epoch", true, &state->source_epoch, err) ||
	    read_number(file, name, "source_origin", true, &state->source_origin, err) ||
	    read_number(file, name, "got", true, &state->got, err))
		return err->code;
	if (state->position > POSITION_MAX)
		return error_set(err, ERR_FORMAT, "%s: metadata position: expected less than 2^63", name);
	if (state->window != window)
		return error_set(err, ERR_UNSUPPORTED, "%s: of window %" PRIu64 ", the window here is %zu", name,
				 state->window, window);
	snprintf(state->model, sizeof state->model, "%s", model);
	snprintf(state->device, sizeof state->device, "%s", device ? device : "unknown");
	return 0;
}

/*
 * Copy one tensor, widened; its type and shape must be those of the entry.  What the daemon sealed is as it was in
 * memory, where sums may have overflowed; what somebody made must be finite.
 */
static int read_tensor(const struct safetensors *file, const char *name, bool sealed,
		       const struct safetensors_entry *entry, float *dst, struct error *err)
{
	const struct safetensor *tensor = safetensors_find(file, entry->name);

	if (!tensor)
		return error_set(err, ERR_FORMAT, "%s: tensor %s is missing", name, entry->name);
	if (!tensor->has_dtype || tensor->dtype != entry->dtype || tensor->rank != entry->rank ||
	    memcmp(tensor->shape, entry->shape, entry->rank * sizeof entry->shape[0]))
		return error_set(err, ERR_UNSUPPORTED, "%s: tensor %s: of another type or shape than the model's", name,
				 entry->name);
	if (!dtype_widen(tensor->dtype, tensor->data, tensor->size / dtype_size(tensor->dtype), dst) && !sealed)
		return error_set(err, ERR_FORMAT, "%s: tensor %s: not all of it is finite", name, entry->name);
	return 0;
}

static int read_tensors(const struct safetensors *file, const char *name, bool sealed, const struct shape *shape,
			size_t window, struct state *state, struct error *err)
{
	const struct safetensor *pending = safetensors_find(file, "pending");
	struct safetensors_entry *entries;
	char *names;
	float *dst = state->cache;
	int rc;

	if (pending && pending->rank == 2 && pending->shape[0] >= window)
		return error_set(err, ERR_FORMAT, "%s: %zu pending rows, expected fewer than a window", name,
				 pending->shape[0]);
	state->pending_rows = pending && pending->rank == 2 ? pending->shape[0] : 0;
	rc = list_tensors(shape, state->pending_rows, &entries, &names, err);
	if (rc)
		return rc;
	if (pending && pending->has_dtype && dtype_is_float(pending->dtype))
		entries[2 * shape->num_layers].dtype = pending->dtype; /* as a tool wrote it: ours are float32 */
	for (size_t i = 0; !rc && i < 2 * shape->num_layers; i++) {
		rc = read_tensor(file, name, sealed, &entries[i], dst, err);
		dst += i % 2 ? shape_ssm_state_floats(shape) : shape_conv_state_floats(shape);
	}
	if (!rc)
		rc = read_tensor(file, name, sealed, &entries[2 * shape->num_layers], state->pending, err);
	free(entries);
	free(names);
	return rc;
}

/* Without a word of them the rows follow one another.  None behind them can have been emitted. */
static int read_positions(const struct safetensors *file, const char *name, struct state *state, struct error *err)
{
	const char *text = safetensors_metadata(file, "positions");
	uint64_t least = state->position;

	for (uint64_t i = 0; i < state->pending_rows; i++) {
		uint64_t position = least;
		char *end;

		if (text) {
			errno = 0;
			position = strtoull(text, &end, 10);
			if (*text < '0' || *text > '9' || errno || position < least || (!i && position > least) ||
			    position > POSITION_MAX || *end != (i + 1 < state->pending_rows ? ',' : '\0'))
				return error_set(err, ERR_FORMAT, "%s: metadata positions: expected %" PRIu64
						 " rising numbers from position on", name, state->pending_rows);
			text = end + 1;
		}
		state->positions[i] = position;
		least = position + 1;
	}
	if (state->emitted > least)
		return error_set(err, ERR_FORMAT,
				 "%s: metadata emitted: expected at most %" PRIu64 ", where the rows end", name, least);
	return 0;
}

/* Is it of another version than ours?  What its checksum covers is not for us to know. */
static bool of_another_version(const struct safetensors *file)
{
	const char *format = safetensors_metadata(file, "format"), *version;

	if (!format || !strcmp(format, FORMAT) || strncmp(format, FORMATS, sizeof FORMATS - 1))
		return false;
	version = format + sizeof FORMATS - 1;
	return *version && strspn(version, "0123456789") == strlen(version);
}

static int verify(const struct safetensors *file, const char *name, bool sealed, struct error *err)
{
	size_t size;
	const char *bytes = safetensors_bytes(file, &size);
	const char *expected = safetensors_metadata(file, "checksum");
	uint64_t header_size;
	const char *place;
	char text[HASH_TEXT];
	int rc;

	memcpy(&header_size, bytes, sizeof header_size);
	header_size += sizeof header_size;
	place = find_checksum(bytes, header_size);
	if (!expected && !sealed)
		return 0;
	if (!expected || !place)
		return error_set(err, ERR_FORMAT, "%s: no checksum", name);
	rc = checksum(bytes, header_size, place, bytes + header_size, size - header_size, NULL, 0, text, err);
	if (!rc && strcmp(text, expected))
		return error_set(err, ERR_FORMAT, "%s: damaged: checksum %s, expected %s", name, text, expected);
	return rc;
}

int statefile_decode(const void *bytes, size_t size, const char *name, bool sealed, const struct shape *shape,
		     const char *fingerprint, size_t window, struct state *state, struct error *err)
{
	struct safetensors *file;
	int rc = safetensors_parse(bytes, size, name, &file, err);

	if (rc)
		return rc;
	if (!of_another_version(file)) /* read_metadata refuses that */
		rc = verify(file, name, sealed, err);
	if (!rc)
		rc = read_metadata(file, name, fingerprint, window, state, err);
	if (!rc)
		rc = read_tensors(file, name, sealed, shape, window, state, err);
	if (!rc)
		rc = read_positions(file, name, state, err);
	safetensors_close(file);
	return rc;
}

/* The whole file in memory; free *ret_bytes with free. */
static int read_file(int fd, const char *name, char **ret_bytes, size_t *ret_size, struct error *err)
{
	struct stat status;
	size_t size, done = 0;
	char *bytes;

	if (fstat(fd, &status))
		return error_system(err, "%s", name);
	size = (size_t)status.st_size;
	bytes = malloc(size ? size : 1);
	if (!bytes)
		return error_memory(err, "a state's bytes");
	while (done < size) {
		ssize_t n = read(fd, bytes + done, size - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			int rc = n && errno != EIO ? error_system(err, "%s", name) :
				 error_set(err, ERR_FORMAT, "%s: damaged: %s", name, n ? strerror(errno) : "truncated");

			free(bytes);
			return rc;
		}
		done += (size_t)n;
	}
	*ret_bytes = bytes;
	*ret_size = size;
	return 0;
}

int statefile_read(int folder, const char *name, const struct shape *shape, const char *fingerprint, size_t window,
		   struct state *state, struct error *err)
{
	int rc, fd = openat(folder, name, O_RDONLY | O_CLOEXEC);
	char *bytes = NULL;
	size_t size = 0;

	if (fd < 0)
		return errno == ENOENT ? error_set(err, ERR_FORMAT, "%s: missing", name) :
		       error_system(err, "%s", name);
	rc = read_file(fd, name, &bytes, &size, err);
	close(fd);
	if (rc)
		return rc;
	rc = statefile_decode(bytes, size, name, true, shape, fingerprint, window, state, err);
	free(bytes);
	return rc;
}
