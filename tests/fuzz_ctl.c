/*
 * mamba2ctl with a daemon that says anything: whatever comes, each command ends, and with a status of its own.
 *
 * The input's first byte chooses the command.  Behind it come answers, or the headers of messages with a byte each of
 * which their payload is made; each ends with a byte that msgpack never uses.  Linked in place of protocol/client.c.
 */
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "daemon/ctl.h"
#include "tests/fuzz.h"

#define SEPARATOR 0xc1
#define MOST_BYTES ((size_t)1 << 16) /* of a payload */

static const uint8_t *input;
static size_t input_left;
static void *answer; /* lent until the next */

struct client {
	int none;
};

/* --- what the commands call --- */

int client_new(enum client_kind kind, const char *address, const struct client_keys *keys, struct client **ret_client,
	       struct error *err)
{
	(void)kind;
	(void)address;
	must(!keys);
	*ret_client = calloc(1, sizeof **ret_client);
	return *ret_client ? 0 : error_memory(err, "a client");
}

void client_free(struct client *client, int linger_ms)
{
	(void)linger_ms;
	free(client);
	free(answer);
	answer = NULL;
}

int client_subscribe(struct client *client, const void *prefix, size_t size, struct error *err)
{
	(void)client;
	(void)prefix;
	(void)size;
	(void)err;
	return 0;
}

/* What comes next, in memory of just its size. */
static int next_answer(size_t *ret_size, struct error *err)
{
	const uint8_t *end = memchr(input, SEPARATOR, input_left);
	const size_t size = end ? (size_t)(end - input) : input_left;

	free(answer);
	answer = NULL;
	if (!input_left)
		return error_set(err, ERR_SYSTEM, "no more comes");
	answer = malloc(size ? size : 1);
	must(answer != NULL);
	memcpy(answer, input, size);
	input += end ? size + 1 : size;
	input_left -= end ? size + 1 : size;
	*ret_size = size;
	return 0;
}

int client_request(struct client *client, const void *request, size_t size, int timeout_ms,
		   struct control *ret_answer, struct error *err)
{
	struct control control;
	size_t n;

	(void)client;
	(void)timeout_ms;
	must(!control_read(request, size, &control, err));
	return next_answer(&n, err) ? err->code : control_read(answer, n, ret_answer, err);
}

int client_receive(struct client *client, int timeout_ms, struct client_message *ret_message, struct error *err)
{
	static unsigned char payload[MOST_BYTES];
	struct client_message message = { .payload = payload };
	size_t n;

	(void)client;
	(void)timeout_ms;
	if (next_answer(&n, err) || message_decode(answer, n, &message.header, err))
		return err->code;
	message.payload_size = message_payload_bytes(&message.header);
	if (message.payload_size > MOST_BYTES)
		return error_set(err, ERR_FORMAT, "the payload is too long");
	memset(payload, input_left ? *input : 0, message.payload_size);
	message.stream = "a";
	message.stream_size = 1;
	*ret_message = message;
	return 1;
}

int ctl_fail(const char *name, int status, const struct error *error)
{
	must(name && error->text[0] != '\0');
	return status;
}

int ctl_usage(const char *name, const char *what)
{
	(void)name;
	(void)what;
	abort();
}

/* In the place of the C library's: no terminal, and no time to lose. */
int isatty(int fd)
{
	(void)fd;
	return 0;
}

int nanosleep(const struct timespec *time, struct timespec *left)
{
	(void)time;
	(void)left;
	return 0;
}

/* --- the commands --- */

/* The array may be as large as a position says. */
static void limit_files(rlim_t bytes)
{
	struct rlimit limit;

	signal(SIGXFSZ, SIG_IGN);
	must(!getrlimit(RLIMIT_FSIZE, &limit));
	limit.rlim_cur = bytes < limit.rlim_max ? bytes : limit.rlim_max;
	must(!setrlimit(RLIMIT_FSIZE, &limit));
}

static int run(uint8_t which)
{
	static char path[] = "/dev/null", array[64];
	static char control[] = "--control=ipc://none", id[] = "a";
	static char *commands[][6] = {
		{ "status", control, NULL }, { "streams", control, "--json", NULL }, { "metrics", control, NULL },
		{ "metrics", control, "--json", NULL }, { "export", control, id, path, NULL },
		{ "top", control, "--count=2", "--interval=0.05", NULL },
		{ "top", control, "--count=2", "--interval=0.05", "--json", NULL },
		{ "recv", NULL }, { "recv", "-o", array, id, NULL }, { "recv", "-o", array, id, "--count=5", NULL }
	};
	char **argv = commands[which % (sizeof commands / sizeof commands[0])];
	int argc = 0, status;

	snprintf(array, sizeof array, "/dev/shm/mamba2d-fuzz-%d.npy", (int)getpid());
	while (argv[argc])
		argc++;
	optind = 0;
	if (!strcmp(argv[0], "top"))
		return ctl_top(argc, argv);
	if (strcmp(argv[0], "recv") != 0)
		return ctl_request(argc, argv);
	limit_files(MOST_BYTES);
	status = ctl_recv(argc, argv);
	limit_files(RLIM_INFINITY);
	unlink(array);
	return status;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static FILE *nowhere;
	FILE *out = stdout, *messages = stderr;
	int status;

	if (!nowhere)
		nowhere = fopen("/dev/null", "w");
	must(nowhere != NULL);
	input = data + (size > 0);
	input_left = size - (size > 0);
	stdout = stderr = nowhere;
	status = run(size ? *data : 0);
	stdout = out;
	stderr = messages;
	must(status >= CTL_OK && status <= CTL_REFUSED && status != CTL_USAGE);
	free(answer);
	answer = NULL;
	return 0;
}
