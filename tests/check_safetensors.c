/*
 * Safetensors files: what is written reads back; every way in which a header can lie is refused by name.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "model/safetensors.h"
#include "tests/suite.h"

/* A file of this header and data_size bytes of data, in memory of exactly its size so that reading past it is seen. */
static unsigned char *make_file(const char *header, size_t data_size, size_t *ret_size)
{
	size_t length = strlen(header);
	unsigned char *file = malloc(8 + length + data_size);

	ck_assert_ptr_nonnull(file);
	for (int i = 0; i < 8; i++)
		file[i] = (unsigned char)((uint64_t)length >> 8 * i);
	memcpy(file + 8, header, length);
	for (size_t i = 0; i < data_size; i++)
		file[8 + length + i] = (unsigned char)i;
	*ret_size = 8 + length + data_size;
	return file;
}

#define TENSOR(name, dtype, shape, begin, end) \
	"\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"

START_TEST(tensors_are_found)
{
	static const char header[] = "{\"__metadata__\":{\"format\":\"pt\"},"
		TENSOR("b", "F32", "[2,3]", 5, 29) "," TENSOR("a", "BF16", "[]", 3, 5) ","
		TENSOR("c", "I8", "[3,1]", 0, 3) "," TENSOR("empty", "F32", "[4,0]", 5, 5) ","
		TENSOR("wide", "I64", "[2]", 29, 45) "}   ";
	const struct safetensor *tensor;
	struct safetensors *file;
	struct error err;
	size_t size, got;
	unsigned char *bytes = make_file(header, 45, &size);

	ck_assert_msg(!safetensors_parse(bytes, size, "memory", &file, &err), "%s", err.text);
	ck_assert_uint_eq(safetensors_count(file), 5);
	ck_assert_str_eq(safetensors_at(file, 0)->name, "a");
	ck_assert_str_eq(safetensors_at(file, 4)->name, "wide");
	tensor = safetensors_find(file, "b");
	ck_assert(tensor->has_dtype && tensor->dtype == DTYPE_FLOAT32);
	ck_assert_uint_eq(tensor->rank, 2);
	ck_assert_uint_eq(tensor->shape[0], 2);
	ck_assert_uint_eq(tensor->shape[1], 3);
	ck_assert_uint_eq(tensor->n, 6);
	ck_assert_uint_eq(tensor->size, 24);
	ck_assert_uint_eq(*(const unsigned char *)tensor->data, 5);
	tensor = safetensors_find(file, "a");
	ck_assert(tensor->rank == 0 && tensor->n == 1 && tensor->dtype == DTYPE_BFLOAT16);
	tensor = safetensors_find(file, "wide");
	ck_assert(!tensor->has_dtype && !strcmp(tensor->format, "I64") && tensor->size == 16);
	ck_assert_ptr_null(safetensors_find(file, "d"));
	ck_assert_ptr_null(safetensors_find(file, "__metadata__"));
	ck_assert_str_eq(safetensors_metadata(file, "format"), "pt");
	ck_assert_ptr_null(safetensors_metadata(file, "other"));
	ck_assert_ptr_eq(safetensors_bytes(file, &got), bytes);
	ck_assert_uint_eq(got, size);
	safetensors_close(file);
	free(bytes);
}
END_TEST

/* A header, its data, and words that the refusal must have. */
static const struct {
	const char *header;
	size_t data_size;
	const char *words[3];
} refused[] = {
	{ "", 0, { "memory", "header" } },
	{ "[]", 0, { "expected a JSON object" } },
	{ "{", 0, { "header", "line 1" } },
	{ "{}x", 0, { "header", "end of file expected" } },
	{ "{} {}", 0, { "header", "end of file expected" } },
	{ "{\"a\":Infinity}", 0, { "header" } },
	{ "{\"\xff\":1}", 0, { "header", "unable to decode byte 0xff" } },
	{ "{\"a\\u0000b\":{}}", 0, { "header" } },
	{ "{" TENSOR("a", "F32", "[1]", 0, 4) "," TENSOR("a", "F32", "[1]", 4, 8) "}", 8, { "duplicate" } },
	{ "{}", 1, { "1 bytes after the last tensor" } },
	{ "{\"new\\nline\":1}", 0, { "tensor new?line" } },
	{ "{\"a\":1}", 0, { "tensor a", "expected an object" } },
	{ "{\"a\":{}}", 0, { "tensor a", "dtype" } },
	{ "{" TENSOR("a", "F33", "[1]", 0, 4) "}", 4, { "tensor a", "unknown dtype F33" } },
	{ "{" TENSOR("a", "float32", "[1]", 0, 4) "}", 4, { "tensor a", "unknown dtype float32" } },
	{ "{\"a\":{\"dtype\":3,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, { "tensor a", "dtype" } },
	{ "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, { "tensor a", "shape" } },
	{ "{" TENSOR("a", "F32", "[-1]", 0, 4) "}", 4, { "tensor a", "shape" } },
	{ "{" TENSOR("a", "F32", "[1.0]", 0, 4) "}", 4, { "tensor a", "shape" } },
	{ "{" TENSOR("a", "F32", "[\"1\"]", 0, 4) "}", 4, { "tensor a", "shape" } },
	{ "{" TENSOR("a", "F32", "[1,1,1,1,1,1,1,1,1]", 0, 4) "}", 4, { "tensor a", "9 dimensions", "at most 8" } },
	{ "{" TENSOR("a", "F32", "[4294967296,4294967296]", 0, 4) "}", 4, { "tensor a", "overflow" } },
	{ "{" TENSOR("a", "F32", "[4294967296,1073741824]", 0, 4) "}", 4, { "tensor a has 4 bytes" } },
	{ "{" TENSOR("a", "F32", "[4611686018427387904]", 0, 0) "}", 0, { "tensor a has 0 bytes" } },
	{ "{" TENSOR("a", "F32", "[9223372036854775808]", 0, 4) "}", 4, { "header" } },
	{ "{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, { "tensor a", "data_offsets" } },
	{ "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, { "tensor a", "data_offsets" } },
	{ "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4, { "tensor a", "data_offsets" } },
	{ "{" TENSOR("a", "F32", "[1]", -4, 0) "}", 4, { "tensor a", "data_offsets" } },
	{ "{" TENSOR("a", "F32", "[1]", 4, 0) "}", 4, { "tensor a", "[4, 0]" } },
	{ "{" TENSOR("a", "F32", "[1]", 0, 4) "}", 3, { "tensor a", "truncated", "the file has 3" } },
	{ "{" TENSOR("a", "F32", "[2]", 0, 4) "}", 4, { "tensor a has 4 bytes", "expected 2 numbers of 4" } },
	{ "{" TENSOR("a", "F32", "[1]", 0, 8) "}", 8, { "tensor a has 8 bytes" } },
	{ "{" TENSOR("a", "F32", "[1]", 0, 4) "," TENSOR("b", "F32", "[1]", 2, 6) "}", 6, { "a and b overlap" } },
	{ "{" TENSOR("a", "F32", "[1]", 0, 4) "," TENSOR("b", "F32", "[1]", 0, 4) "}", 4, { "overlap" } },
	{ "{" TENSOR("a", "F32", "[1]", 1, 5) "}", 5, { "1 bytes before tensor a" } },
	{ "{" TENSOR("a", "F32", "[1]", 0, 4) "," TENSOR("b", "F32", "[1]", 6, 10) "}", 10,
	  { "2 bytes before tensor b" } },
	{ "{\"__metadata__\":[]}", 0, { "__metadata__", "expected an object" } },
	{ "{\"__metadata__\":{\"k\":1}}", 0, { "__metadata__", "k", "expected a string" } },
};

START_TEST(lies_are_refused)
{
	struct safetensors *file;
	struct error err;
	size_t size;
	unsigned char *bytes = make_file(refused[_i].header, refused[_i].data_size, &size);

	ck_assert_msg(safetensors_parse(bytes, size, "memory", &file, &err) == ERR_FORMAT, "%s", refused[_i].header);
	ck_assert_int_eq(err.code, ERR_FORMAT);
	ck_assert_msg(strstr(err.text, "memory"), "%s", err.text);
	for (size_t i = 0; i < 3 && refused[_i].words[i]; i++)
		ck_assert_msg(strstr(err.text, refused[_i].words[i]), "\"%s\" is not in: %s", refused[_i].words[i],
			      err.text);
	free(bytes);
}
END_TEST

static void assert_bytes_refused(const void *bytes, size_t size, const char *word)
{
	struct safetensors *file;
	struct error err;

	ck_assert_int_eq(safetensors_parse(bytes, size, "memory", &file, &err), ERR_FORMAT);
	ck_assert_msg(strstr(err.text, word), "\"%s\" is not in: %s", word, err.text);
}

START_TEST(header_lengths_are_checked)
{
	static const unsigned char huge[16] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, '{', '}' };
	static const unsigned char large[16] = { 0x01, 0xe1, 0xf5, 0x05, 0, 0, 0, 0, '{', '}' }; /* 100,000,001 */
	static const unsigned char longer[10] = { 3, 0, 0, 0, 0, 0, 0, 0, '{', '}' };

	assert_bytes_refused(huge, 7, "too short");
	assert_bytes_refused(huge, sizeof huge, "at most 100000000");
	assert_bytes_refused(large, sizeof large, "at most 100000000");
	assert_bytes_refused(longer, sizeof longer, "truncated");
}
END_TEST

/* A file cut anywhere is refused. */
START_TEST(every_truncation_is_refused)
{
	size_t size;
	unsigned char *bytes = make_file("{" TENSOR("a", "F32", "[2,2]", 0, 16) "}", 16, &size);
	struct safetensors *file;
	struct error err;

	for (size_t cut = 0; cut < size; cut++) {
		unsigned char *part = malloc(cut ? cut : 1);

		memcpy(part, bytes, cut);
		ck_assert_int_eq(safetensors_parse(part, cut, "memory", &file, &err), ERR_FORMAT);
		free(part);
	}
	ck_assert_int_eq(safetensors_parse(bytes, size, "memory", &file, &err), 0);
	safetensors_close(file);
	free(bytes);
}
END_TEST

/* Deep nesting must neither crash nor take long. */
START_TEST(nesting_is_limited)
{
	static char header[200001];
	unsigned char *bytes;
	size_t size;

	memset(header, '[', sizeof header - 1);
	memcpy(header, "{\"a\":", 5);
	bytes = make_file(header, 0, &size);
	assert_bytes_refused(bytes, size, "depth");
	free(bytes);
}
END_TEST

START_TEST(what_is_written_reads_back)
{
	static const struct safetensors_entry entries[] = {
		{ "layers.0.conv_state", DTYPE_FLOAT32, 2, { 3, 2 } },
		{ "odd \"name\"\n\xc3\xa9", DTYPE_FLOAT16, 1, { 5 } },
		{ "scalar", DTYPE_UINT8, 0, { 0 } },
		{ "nothing", DTYPE_BFLOAT16, 3, { 2, 0, 2 } },
	};
	static const struct safetensors_string metadata[] = { { "format", "mamba2d-state-1" }, { "q\\", "\"" } };
	struct safetensors *file;
	struct error err;
	size_t size;
	unsigned char *bytes;
	void *header;

	ck_assert_int_eq(safetensors_header(entries, 4, metadata, 2, &header, &size, &err), 0);
	ck_assert_uint_eq(size % SAFETENSORS_BLOCK, 0);
	bytes = calloc(1, size + 24 + 10 + 1);
	memcpy(bytes, header, size);
	bytes[size + 24] = 77;
	ck_assert_msg(!safetensors_parse(bytes, size + 35, "memory", &file, &err), "%s", err.text);
	ck_assert_uint_eq(safetensors_count(file), 4);
	ck_assert_ptr_eq(safetensors_find(file, entries[0].name)->data, bytes + size);
	ck_assert_uint_eq(*(const unsigned char *)safetensors_find(file, entries[1].name)->data, 77);
	ck_assert_uint_eq(safetensors_find(file, "scalar")->size, 1);
	ck_assert_uint_eq(safetensors_find(file, "nothing")->shape[2], 2);
	ck_assert_str_eq(safetensors_metadata(file, "format"), "mamba2d-state-1");
	ck_assert_str_eq(safetensors_metadata(file, "q\\"), "\"");
	safetensors_close(file);
	free(bytes);
	free(header);
}
END_TEST

START_TEST(headers_without_tensors_or_metadata)
{
	static const struct safetensors_string bad = { "key", "\xff" };
	struct safetensors *file;
	struct error err;
	void *header;
	size_t size;

	ck_assert_int_eq(safetensors_header(NULL, 0, NULL, 0, &header, &size, &err), 0);
	ck_assert_int_eq(safetensors_parse(header, size, "memory", &file, &err), 0);
	ck_assert_uint_eq(safetensors_count(file), 0);
	ck_assert_ptr_null(safetensors_find(file, "a"));
	safetensors_close(file);
	free(header);
	ck_assert_int_eq(safetensors_header(NULL, 0, &bad, 1, &header, &size, &err), ERR_ARGUMENT);
	ck_assert_msg(strstr(err.text, "UTF-8"), "%s", err.text);
}
END_TEST

START_TEST(paths_are_checked)
{
	char path[] = "/tmp/check_safetensors.XXXXXX";
	struct safetensors *file;
	struct error err;

	ck_assert_int_eq(safetensors_open("/nonexistent/model.safetensors", &file, &err), ERR_SYSTEM);
	ck_assert_msg(strstr(err.text, "/nonexistent/model.safetensors: No such file"), "%s", err.text);
	ck_assert_int_eq(safetensors_open("/tmp", &file, &err), ERR_FORMAT);
	ck_assert_msg(strstr(err.text, "/tmp is no regular file"), "%s", err.text);
	close(mkstemp(path));
	ck_assert_int_eq(safetensors_open(path, &file, &err), ERR_FORMAT);
	ck_assert_msg(strstr(err.text, "is empty"), "%s", err.text);
	unlink(path);
	safetensors_close(NULL);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("safetensors");
	TCase *reading = tcase_create("reading"), *writing = tcase_create("writing");

	tcase_add_test(reading, tensors_are_found);
	tcase_add_loop_test(reading, lies_are_refused, 0, sizeof refused / sizeof *refused);
	tcase_add_test(reading, header_lengths_are_checked);
	tcase_add_test(reading, every_truncation_is_refused);
	tcase_add_test(reading, nesting_is_limited);
	tcase_add_test(reading, paths_are_checked);
	tcase_add_test(writing, what_is_written_reads_back);
	tcase_add_test(writing, headers_without_tensors_or_metadata);
	suite_add_tcase(suite, reading);
	suite_add_tcase(suite, writing);
	return suite_run(suite);
}
