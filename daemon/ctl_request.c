/*
 * mamba2ctl status, streams, reset, close, drain, reload, snapshot, export, import, fork: one control request, its
 * answer printed or, where it is a stream's state, written to a file.
 */
#include <fcntl.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/ctl.h"
#include "daemon/runtime.h"
#include "protocol/client.h"
#include "protocol/refusal.h"
#include "protocol/streamid.h"

#define TIMEOUT_MS 5000
#define STATE_TIMEOUT_MS 120000 /* where states are copied or written */
#define REQUEST_BYTES 2048 /* beside a state */
#define ARGUMENTS_MAX 2

enum kind { NONE, STREAM, FILE_OUT, FILE_IN };

/* The arguments that each command takes: the request's key for a stream id or a file that is read, and what it is. */
static const struct {
	const char *name;
	int timeout_ms;
	struct {
		enum kind kind;
		const char *key;
		bool required;
	} argument[ARGUMENTS_MAX];
} commands[] = {
	{ "status", TIMEOUT_MS, { { NONE, NULL, false } } },
	{ "streams", TIMEOUT_MS, { { STREAM, "prefix", false } } },
	{ "metrics", TIMEOUT_MS, { { NONE, NULL, false } } },
	{ "reset", STATE_TIMEOUT_MS, { { STREAM, "stream", true } } },
	{ "close", TIMEOUT_MS, { { STREAM, "stream", true } } },
	{ "drain", TIMEOUT_MS, { { NONE, NULL, false } } },
	{ "reload", TIMEOUT_MS, { { NONE, NULL, false } } },
	{ "snapshot", STATE_TIMEOUT_MS, { { STREAM, "stream", false } } },
	{ "export", STATE_TIMEOUT_MS, { { STREAM, "stream", true }, { FILE_OUT, "state", true } } },
	{ "import", STATE_TIMEOUT_MS, { { FILE_IN, "state", true }, { STREAM, "stream", false } } },
	{ "fork", STATE_TIMEOUT_MS, { { STREAM, "stream", true }, { STREAM, "to", true } } },
};

struct request {
	size_t command; /* in commands */
	const char *name, *address;
	struct ctl_keys keys;
	const char *value[ARGUMENTS_MAX];
	bool json;
	char *bytes;    /* [capacity] */
	size_t size, capacity;
};

static int read_arguments(int argc, char **argv, struct request *r)
{
	static const struct option options[] = {
		{ "control", required_argument, NULL, 'c' }, { "json", no_argument, NULL, 'j' }, CTL_KEY_OPTIONS,
		{ NULL, 0, NULL, 0 }
	};
	int option;

	*r = (struct request){ .name = argv[0] };
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (option == 'c')
			r->address = optarg;
		else if (option == 'j')
			r->json = true;
		else if (!ctl_keys_option(&r->keys, option, optarg))
			return ctl_usage(r->name, NULL);
	}
	while (strcmp(commands[r->command].name, r->name))
		r->command++;
	for (size_t i = 0; i < ARGUMENTS_MAX && commands[r->command].argument[i].kind; i++) {
		if (optind < argc)
			r->value[i] = argv[optind++];
		else if (commands[r->command].argument[i].required)
			return ctl_usage(r->name, commands[r->command].argument[i].kind == STREAM
							  ? "expected a stream id"
							  : "expected a file");
	}
	return optind < argc ? ctl_usage(r->name, "too many arguments") : 0;
}

/* The whole of a file; free *ret_bytes with free. */
static int read_file(const char *path, char **ret_bytes, size_t *ret_size, struct error *err)
{
	FILE *file = fopen(path, "re");
	struct stat status;
	char *bytes = NULL;
	int rc = 0;

	if (!file || fstat(fileno(file), &status))
		rc = error_system(err, "%s", path);
	else if (!(bytes = malloc((size_t)status.st_size + 1)))
		rc = error_memory(err, path);
	else if (fread(bytes, 1, (size_t)status.st_size, file) != (size_t)status.st_size)
		rc = error_system(err, "%s", path);
	if (file)
		fclose(file);
	if (rc) {
		free(bytes);
		return rc;
	}
	*ret_bytes = bytes;
	*ret_size = (size_t)status.st_size;
	return 0;
}

/* Write the request's bytes from its arguments. */
static int make_request(struct request *r, struct error *err)
{
	struct control_writer writer;
	char *state = NULL;
	size_t state_size = 0;
	int rc = 0;

	for (size_t i = 0; i < ARGUMENTS_MAX && !rc; i++)
		if (commands[r->command].argument[i].kind == FILE_IN)
			rc = read_file(r->value[i], &state, &state_size, err);
	if (rc)
		return rc;
	r->capacity = REQUEST_BYTES + state_size;
	r->bytes = malloc(r->capacity);
	if (!r->bytes) {
		free(state);
		return error_memory(err, "request");
	}
	control_begin_request(&writer, r->bytes, r->capacity, r->name);
	for (size_t i = 0; i < ARGUMENTS_MAX && r->value[i] && !rc; i++) {
		unsigned char id[MESSAGE_STREAM_MAX];
		size_t id_size;

		if (commands[r->command].argument[i].kind == FILE_IN)
			control_put_bin(&writer, commands[r->command].argument[i].key, state, state_size);
		if (commands[r->command].argument[i].kind != STREAM)
			continue;
		rc = streamid_parse(r->value[i], id, &id_size, err);
		if (!rc)
			control_put_bin(&writer, commands[r->command].argument[i].key, id, id_size);
	}
	r->size = control_finish(&writer);
	free(state);
	return rc;
}

int ctl_refused(const char *name, const struct control *answer)
{
	const char *code = "internal", *text = "";
	size_t code_size = strlen(code), text_size = 0;
	struct error error;
	bool ok = false;

	if (!control_get_bool(answer, "ok", &ok, &error) && ok)
		return CTL_OK;
	control_get_bytes(answer, "code", &code, &code_size, &error);
	control_get_bytes(answer, "message", &text, &text_size, &error);
	fprintf(stderr, "mamba2ctl %s: refused (%.*s): %.*s\n", name, (int)code_size, code, (int)text_size, text);
	return CTL_REFUSED;
}

/* Write an exported state to its file. */
static int write_state(const struct request *r, const char *path, const struct control *answer)
{
	const char *bytes = NULL, *damage = NULL;
	size_t size = 0, damage_size = 0, written;
	struct error error;
	FILE *file;

	if (control_get_bytes(answer, "state", &bytes, &size, &error) ||
	    control_get_bytes(answer, "damaged", &damage, &damage_size, &error))
		return ctl_fail(r->name, CTL_FAILED, &error);
	if (damage)
		fprintf(stderr, "mamba2ctl %s: %.*s; this is the state before it\n", r->name, (int)damage_size, damage);
	file = fopen(path, "we");
	written = file ? fwrite(bytes, 1, size, file) : 0;
	if (!file || fclose(file) || written != size) {
		error_system(&error, "%s", path);
		return ctl_fail(r->name, CTL_FAILED, &error);
	}
	printf(r->json ? "{\"ok\": true, \"bytes\": %zu}\n" : "%zu bytes written\n", size);
	return CTL_OK;
}

static int show(const struct request *r, const struct control *answer)
{
	if (ctl_refused(r->name, answer))
		return CTL_REFUSED;
	for (size_t i = 0; i < ARGUMENTS_MAX; i++)
		if (commands[r->command].argument[i].kind == FILE_OUT)
			return write_state(r, r->value[i], answer);
	if (r->json)
		control_print_json(answer, stdout);
	else
		control_print_text(answer, stdout);
	return CTL_OK;
}

int ctl_connect_control(const char *address, const struct ctl_keys *keys, struct client **ret_client,
			struct error *err)
{
	char own[256];

	if (!address && runtime_find_control(own, sizeof own, err))
		return err->code;
	return ctl_connect(CLIENT_CONTROL, address ? address : own, keys, ret_client, err);
}

int ctl_request(int argc, char **argv)
{
	struct request r;
	struct control answer;
	struct client *client = NULL;
	struct error error;
	int rc = read_arguments(argc, argv, &r);

	if (rc)
		return rc;
	if (make_request(&r, &error)) {
		free(r.bytes);
		return ctl_fail(r.name, CTL_USAGE, &error);
	}
	if (ctl_connect_control(r.address, &r.keys, &client, &error) ||
	    client_request(client, r.bytes, r.size, commands[r.command].timeout_ms, &answer, &error))
		rc = ctl_fail(r.name, error.code == REFUSED_DENIED ? CTL_REFUSED : CTL_NO_DAEMON, &error);
	else
		rc = show(&r, &answer);
	client_free(client, 0);
	free(r.bytes);
	return rc;
}
