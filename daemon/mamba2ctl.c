/*
 * mamba2ctl: one program, a table of subcommands with what --help says of each.
 */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "daemon/ctl.h"

#define CONTROL "  --control ADDRESS       the daemon's control socket (default: the daemon of this user)\n"
#define JSON "  --json                  one line of JSON instead of text\n"
#define KEYS \
	"  --key FILE, --server-key FILE.pub\n" \
	"                          our secret key and the daemon's public one\n"

enum group { OFFLINE, ROWS, CONTROLS };

static const char *const headings[] = {
	[OFFLINE] = "Without a daemon:",
	[ROWS] = "Rows in, hidden states out:",
	[CONTROLS] = "Ask a running daemon:"
};

static const struct command {
	const char *name;
	int (*run)(int argc, char **argv);
	enum group group;
	const char *arguments, *summary;
	const char *more; /* for the command's own --help */
} commands[] = {
	{ "encode", ctl_encode, OFFLINE,
	  "--model DIR [--window N] [--device D] [--precision P] [--threads N] IN.npy OUT.npy",
	  "run a whole recording through a checkpoint",
	  "IN.npy is [rows, hidden_size] of float32 or float16, or [rows] token ids; OUT.npy becomes float32 [rows,\n"
	  "hidden_size].  With a daemon's device, precision and window these are the bits that the daemon publishes.\n"
	  "\n"
	  "  --model DIR             folder of the checkpoint\n"
	  "  --window N              rows (default: 256)\n"
	  "  --device D              auto, cpu, cuda or cuda:N (default: auto)\n"
	  "  --precision P           auto, float32 or bfloat16 (default: auto)\n"
	  "  --threads N             of a CPU (default: all)\n"
	  "\n"
	  "Examples:\n"
	  "  mamba2ctl encode --model /srv/mamba2-130m rows.npy hidden.npy\n"
	  "  mamba2ctl encode --model /srv/mamba2-130m --device cpu --threads 4 tokens.npy hidden.npy\n" },
	{ "keygen", ctl_keygen, OFFLINE, "FILE", "make a key: the secret one in FILE, the public one in FILE.pub",
	  "Files that exist are not overwritten.\n"
	  "\n"
	  "Example:\n"
	  "  mamba2ctl keygen gate-7 && cat gate-7.pub\n" },
	{ "send", ctl_send, ROWS, "[--ingest ADDRESS] [--flush] [--end] STREAM IN.npy",
	  "send a recording as rows of a stream; returns when all is accepted",
	  "The rows follow those that the stream has.  Credit is heeded; nothing is lost or sent twice.\n"
	  "\n"
	  "  --ingest ADDRESS        (default: tcp://127.0.0.1:5701)\n"
	  "  --flush                 have the rows of the unfinished window emitted, too\n"
	  "  --end                   close the stream afterwards\n" KEYS
	  "\n"
	  "Examples:\n"
	  "  mamba2ctl send sensor-7 monday.npy && mamba2ctl send --end sensor-7 tuesday.npy\n"
	  "  mamba2ctl send --ingest tcp://gpu-3:5701 --key gate-7 --server-key gpu-3.pub sensor-7 rows.npy\n" },
	{ "recv", ctl_recv, ROWS, "[--publish ADDRESS] [--count ROWS] [-o OUT.npy STREAM | PREFIX]",
	  "print what is published, or collect a stream's hidden states in a file",
	  "Without -o a line a message is printed, of all streams whose id begins with PREFIX.  With -o the hidden\n"
	  "states of STREAM are collected until it is closed: each stands where its position says, rows that were\n"
	  "missed are NaN and make the exit status 1.\n"
	  "\n"
	  "  --publish ADDRESS       (default: tcp://127.0.0.1:5702)\n"
	  "  --count ROWS            leave after so many rows\n"
	  "  -o OUT.npy              float32 [rows, hidden_size]\n" KEYS
	  "\n"
	  "Examples:\n"
	  "  mamba2ctl recv                        # everything\n"
	  "  mamba2ctl recv --count 1 ward-2/      # wait until one of these streams moves\n"
	  "  mamba2ctl recv -o hidden.npy sensor-7 &\n"
	  "  sleep 1; mamba2ctl send --end sensor-7 rows.npy; wait   # what goes out before recv listens is missed\n" },
	{ "status", ctl_request, CONTROLS, "[--json]", "what the daemon runs, where it listens, and its counters",
	  CONTROL JSON KEYS
	  "\n"
	  "Examples:\n"
	  "  mamba2ctl status\n"
	  "  mamba2ctl status --json | jq .rows_in\n"
	  "  mamba2ctl status >/dev/null && echo it answers\n" },
	{ "top", ctl_top, CONTROLS, "[--json] [--interval S] [--count N] [PREFIX]",
	  "rates, latencies and streams, live",
	  "Ctrl-C leaves.  Where the output is no terminal, or with --json, each time follows the one before.\n"
	  "\n"
	  "  --interval S            seconds (default: 1)\n"
	  "  --count N               leave after so many times\n" CONTROL JSON KEYS
	  "\n"
	  "Examples:\n"
	  "  mamba2ctl top                         # the busiest streams first\n"
	  "  mamba2ctl top ward-2/                 # of those whose id begins so\n"
	  "  mamba2ctl top --json --count 1 --interval 10 | jq .rows_in_per_s\n" },
	{ "streams", ctl_request, CONTROLS, "[--json] [PREFIX]", "the streams in memory, and where they stand",
	  CONTROL JSON KEYS
	  "\n"
	  "Examples:\n"
	  "  mamba2ctl streams ward-2/\n"
	  "  mamba2ctl streams --json | jq -r '.streams[] | select(.queued_rows > 1000) | .stream'\n" },
	{ "metrics", ctl_request, CONTROLS, "[--json]", "all that /metrics has, without HTTP",
	  CONTROL JSON KEYS
	  "\n"
	  "Example:\n"
	  "  mamba2ctl metrics --json | jq .mamba2d_refused_total\n" },
	{ "reset", ctl_request, CONTROLS, "STREAM", "start a stream anew: next epoch, zero cache",
	  "What was accepted is emitted first.  Also for streams on disk, and the cure for damaged ones.\n"
	  "\n" CONTROL JSON KEYS
	  "\n"
	  "Example:\n"
	  "  mamba2ctl reset sensor-7\n" },
	{ "close", ctl_request, CONTROLS, "STREAM", "flush and close a stream",
	  CONTROL JSON KEYS
	  "\n"
	  "Example:\n"
	  "  mamba2ctl close 0x00ff17              # an id that is not printable, in hex\n" },
	{ "drain", ctl_request, CONTROLS, "", "take no more input; what was accepted goes out",
	  CONTROL JSON KEYS
	  "\n"
	  "Example:\n"
	  "  mamba2ctl drain && mamba2ctl snapshot && systemctl stop mamba2d\n" },
	{ "reload", ctl_request, CONTROLS, "",
	  "read the configuration again; names what changed and what needs a restart",
	  "After a mistake nothing has changed.\n"
	  "\n" CONTROL JSON KEYS
	  "\n"
	  "Example:\n"
	  "  mamba2d -c /etc/mamba2d/mamba2d.yaml --check && mamba2ctl reload\n" },
	{ "snapshot", ctl_request, CONTROLS, "[STREAM]", "save what has changed, and return when it is on disk",
	  CONTROL JSON KEYS
	  "\n"
	  "Example:\n"
	  "  mamba2ctl snapshot sensor-7\n" },
	{ "export", ctl_request, CONTROLS, "STREAM FILE", "a stream's state as a safetensors file",
	  CONTROL JSON KEYS
	  "\n"
	  "Example: a stream moves to another machine\n"
	  "  mamba2ctl export sensor-7 sensor-7.safetensors && mamba2ctl close sensor-7\n"
	  "  mamba2ctl import --control tcp://gpu-3:5703 sensor-7.safetensors\n" },
	{ "import", ctl_request, CONTROLS, "FILE [STREAM]",
	  "make a stream of such a file, under another id if one is given",
	  "A stream that has the id already is ended and replaced: its producer has to open the next epoch.\n"
	  "\n" CONTROL JSON KEYS
	  "\n"
	  "Example:\n"
	  "  mamba2ctl import sensor-7.safetensors sensor-7-again\n" },
	{ "fork", ctl_request, CONTROLS, "STREAM NEW", "let another stream go on from a copy of this one's state",
	  "If there is a stream NEW it is ended and replaced: its producer has to open the next epoch.\n"
	  "\n" CONTROL JSON KEYS
	  "\n"
	  "Example:\n"
	  "  mamba2ctl fork sensor-7 what-if\n" },
};
#define N_COMMANDS (sizeof commands / sizeof commands[0])

static const char after[] =
	"Where the output is for scripts, commands that ask take --json.  They take --control ADDRESS (default: the\n"
	"daemon of this user), and all that connect take --key FILE and --server-key FILE.pub.\n"
	"mamba2ctl COMMAND --help explains a command, with examples.  Stream ids that are not printable are written\n"
	"as 0x and hex digits.\n"
	"\n"
	"Exit status: 0 done, 1 failed, 2 wrong usage, 3 no daemon answered, 4 the daemon refused.\n"
	"\n"
	"Examples:\n"
	"  mamba2ctl encode --model /srv/mamba2-130m --window 256 rows.npy hidden.npy\n"
	"  mamba2ctl send --ingest tcp://127.0.0.1:5701 --end sensor-7 rows.npy\n"
	"  mamba2ctl status --json | jq .rows_in\n"
	"  mamba2ctl top ward-2/\n"
	"  mamba2ctl export sensor-7 sensor-7.safetensors\n";

static void help(FILE *out)
{
	fputs("Usage: mamba2ctl COMMAND [ARGUMENT]...\n", out);
	for (size_t i = 0; i < N_COMMANDS; i++) {
		const struct command *c = &commands[i];
		char head[160];

		if (!i || c->group != commands[i - 1].group)
			fprintf(out, "\n%s\n", headings[c->group]);
		snprintf(head, sizeof head, "  %s %s", c->name, c->arguments);
		if (strlen(head) < 26)
			fprintf(out, "%-26s%s\n", head, c->summary);
		else
			fprintf(out, "%s\n%26s%s\n", head, "", c->summary);
	}
	fprintf(out, "\n%s", after);
}

static const struct command *find(const char *name)
{
	for (size_t i = 0; i < N_COMMANDS; i++)
		if (!strcmp(name, commands[i].name))
			return &commands[i];
	return NULL;
}

static int explain(const struct command *command)
{
	printf("Usage: mamba2ctl %s%s%s\n\n%c%s.\n%s%s", command->name, *command->arguments ? " " : "",
	       command->arguments,
	       toupper((unsigned char)command->summary[0]), command->summary + 1,
	       command->more[0] == ' ' ? "\n" : "", command->more);
	return CTL_OK;
}

static bool is_help(const char *word)
{
	return !strcmp(word, "--help") || !strcmp(word, "-h");
}

int ctl_fail(const char *name, int status, const struct error *error)
{
	fprintf(stderr, "mamba2ctl %s: %s\n", name, error->text);
	return status;
}

int ctl_usage(const char *name, const char *what)
{
	fprintf(stderr, "mamba2ctl %s: %s%ssee mamba2ctl %s --help\n", name, what ? what : "", what ? "; " : "", name);
	return CTL_USAGE;
}

int main(int argc, char **argv)
{
	const struct command *command = argc > 1 ? find(argv[1]) : NULL;

	if (command && argc > 2 && is_help(argv[2]))
		return explain(command);
	if (command)
		return command->run(argc - 1, argv + 1);
	if (argc > 1 && (is_help(argv[1]) || !strcmp(argv[1], "help"))) {
		command = argc > 2 ? find(argv[2]) : NULL;
		if (command)
			return explain(command);
		help(stdout);
		return CTL_OK;
	}
	if (argc > 1 && !strcmp(argv[1], "--version")) {
		puts(PACKAGE_STRING);
		return CTL_OK;
	}
	if (argc > 1)
		fprintf(stderr, "mamba2ctl: unknown command \"%s\"\n", argv[1]);
	help(stderr);
	return CTL_USAGE;
}
