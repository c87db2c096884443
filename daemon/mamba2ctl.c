/*
 * mamba2ctl: one program, a table of subcommands.
 */
#include <stdio.h>
#include <string.h>

#include "daemon/ctl.h"

static const char usage[] =
	"Usage: mamba2ctl COMMAND [ARGUMENT]...\n"
	"\n"
	"Without a daemon:\n"
	"  encode --model DIR [--window N] [--device D] [--precision P] [--threads N] IN.npy OUT.npy\n"
	"                          run a whole recording: [rows, hidden_size] or [rows] token ids in, hidden states out\n"
	"  keygen FILE             make a key: the secret one in FILE, the public one in FILE.pub\n"
	"\n"
	"With a running daemon:\n"
	"  send [--ingest ADDRESS] [--flush] [--end] STREAM IN.npy\n"
	"                          send a recording as rows of a stream; returns when all is done\n"
	"  recv [--publish ADDRESS] [--count ROWS] [-o OUT.npy] [PREFIX]\n"
	"                          print what is published, or collect the hidden states of a stream until it is closed\n"
	"  status [--json]         what the daemon runs, and its counters\n"
	"  streams [--json] [PREFIX]\n"
	"  metrics [--json]        all that /metrics has, without HTTP\n"
	"  reset STREAM            start a stream anew: next epoch, zero cache\n"
	"  close STREAM            flush and close a stream\n"
	"  drain                   take no more input; what was accepted goes out\n"
	"  reload                  read the configuration again; names what changed and what needs a restart\n"
	"  snapshot [STREAM]       save what has changed, and return when it is on disk\n"
	"  export STREAM FILE      a stream's state as a safetensors file\n"
	"  import FILE [STREAM]    make a stream of such a file, under another id if one is given\n"
	"  fork STREAM NEW         let another stream go on from a copy of this one's state\n"
	"All of these take --key FILE and --server-key FILE.pub: our secret key and the daemon's public one.\n"
	"From status on they take --control ADDRESS (default: the daemon of this user).\n"
	"\n"
	"Exit status: 0 done, 1 failed, 2 wrong usage, 3 no daemon answered, 4 the daemon refused.\n"
	"\n"
	"Examples:\n"
	"  mamba2ctl encode --model /srv/mamba2-130m --window 256 rows.npy hidden.npy\n"
	"  mamba2ctl send --ingest tcp://127.0.0.1:5701 --end sensor-7 rows.npy\n"
	"  mamba2ctl status --json | jq .rows_in\n"
	"  mamba2ctl export sensor-7 sensor-7.safetensors\n";

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
} commands[] = {
	{ "encode", ctl_encode }, { "keygen", ctl_keygen }, { "send", ctl_send }, { "recv", ctl_recv },
	{ "status", ctl_request },
	{ "streams", ctl_request }, { "metrics", ctl_request },
	{ "reset", ctl_request }, { "close", ctl_request }, { "drain", ctl_request },
	{ "reload", ctl_request },
	{ "snapshot", ctl_request }, { "export", ctl_request }, { "import", ctl_request }, { "fork", ctl_request },
};

int ctl_fail(const char *name, int status, const struct error *error)
{
	fprintf(stderr, "mamba2ctl %s: %s\n", name, error->text);
	return status;
}

int ctl_usage(const char *name, const char *what)
{
	fprintf(stderr, "mamba2ctl %s: %s%ssee mamba2ctl --help\n", name, what ? what : "", what ? "; " : "");
	return CTL_USAGE;
}

int main(int argc, char **argv)
{
	if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
		fputs(usage, stdout);
		return CTL_OK;
	}
	if (argc > 1 && !strcmp(argv[1], "--version")) {
		puts(PACKAGE_STRING);
		return CTL_OK;
	}
	for (size_t i = 0; argc > 1 && i < sizeof commands / sizeof commands[0]; i++)
		if (!strcmp(argv[1], commands[i].name))
			return commands[i].run(argc - 1, argv + 1);
	if (argc > 1)
		fprintf(stderr, "mamba2ctl: unknown command \"%s\"\n", argv[1]);
	fputs(usage, stderr);
	return CTL_USAGE;
}
