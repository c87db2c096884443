/*
 * mamba2ctl status, streams, reset, close, drain: one control request, its answer printed.
 */
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "daemon/ctl.h"
#include "daemon/runtime.h"
#include "protocol/client.h"
#include "protocol/streamid.h"

#define TIMEOUT_MS 10000

/* What each command takes as its argument: the key that carries it. */
static const struct {
	const char *name, *key;
	bool required;
} commands[] = {
	{ "status", NULL, false }, { "streams", "prefix", false }, { "reset", "stream", true }, { "close", "stream", true },
	{ "drain", NULL, false },
};

struct arguments {
	const char *cmd, *address, *key, *value;
	bool json;
};

static int read_arguments(int argc, char **argv, struct arguments *a)
{
	static const struct option options[] = {
		{ "control", required_argument, NULL, 'c' }, { "json", no_argument, NULL, 'j' }, { NULL, 0, NULL, 0 }
	};
	size_t i = 0;
	int option;

	*a = (struct arguments){ .cmd = argv[0] };
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (option == 'c')
			a->address = optarg;
		else if (option == 'j')
			a->json = true;
		else
			return ctl_usage(a->cmd, NULL);
	}
	while (strcmp(commands[i].name, a->cmd))
		i++;
	a->key = commands[i].key;
	if (a->key && optind < argc)
		a->value = argv[optind++];
	if (commands[i].required && !a->value)
		return ctl_usage(a->cmd, "expected a stream id");
	return optind < argc ? ctl_usage(a->cmd, "too many arguments") : 0;
}

/* Print a refusal and return the exit status. */
static int refused(const struct arguments *a, const struct control *answer)
{
	const char *code = "internal", *text = "";
	size_t code_size = strlen(code), text_size = 0;
	struct error error;

	control_get_bytes(answer, "code", &code, &code_size, &error);
	control_get_bytes(answer, "message", &text, &text_size, &error);
	fprintf(stderr, "mamba2ctl %s: refused (%.*s): %.*s\n", a->cmd, (int)code_size, code, (int)text_size, text);
	return CTL_REFUSED;
}

int ctl_request(int argc, char **argv)
{
	struct arguments a;
	char own[256];
	char request[1024];
	unsigned char id[MESSAGE_STREAM_MAX];
	size_t id_size;
	struct control_writer writer;
	struct control answer;
	struct client *client = NULL;
	struct error error;
	bool ok = false;
	size_t size;
	int rc = read_arguments(argc, argv, &a);

	if (rc)
		return rc;
	if (!a.address) {
		if (runtime_control_address(own, sizeof own, &error))
			return ctl_fail(a.cmd, CTL_FAILED, &error);
		a.address = own;
	}
	control_begin_request(&writer, request, sizeof request, a.cmd);
	if (a.value && streamid_parse(a.value, id, &id_size, &error))
		return ctl_usage(a.cmd, error.text);
	if (a.value)
		control_put_bin(&writer, a.key, id, id_size);
	size = control_finish(&writer);
	if (client_new(CLIENT_CONTROL, a.address, &client, &error) ||
	    client_request(client, request, size, TIMEOUT_MS, &answer, &error)) {
		rc = ctl_fail(a.cmd, CTL_NO_DAEMON, &error);
		goto out;
	}
	if (control_get_bool(&answer, "ok", &ok, &error) || !ok)
		rc = refused(&a, &answer);
	else if (a.json)
		control_print_json(&answer, stdout);
	else
		control_print_text(&answer, stdout);
out:
	client_free(client, 0);
	return rc;
}
