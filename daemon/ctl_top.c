/*
 * mamba2ctl top: what happened between two answers of the daemon, again and again, as a screen or as lines of JSON.
 */
#include <getopt.h>
#include <math.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "daemon/ctl.h"
#include "daemon/ctl_sample.h"
#include "protocol/refusal.h"

#define HEAD_LINES 10 /* above the streams */
#define BUSIEST 10    /* streams in JSON, and where there is no screen */

struct arguments {
	const char *address;
	unsigned char prefix[MESSAGE_STREAM_MAX];
	size_t prefix_size;
	struct ctl_keys keys;
	bool json;
	double interval;
	unsigned long count; /* 0: for ever */
};

/* What is shown: rates per second, shares, seconds and bytes.  NaN where there is nothing to say. */
struct view {
	double rows_in, rows_out, windows, batches, fill, busy, p50, p90, p99, wait, compute, send;
	double device, host, disk, ready, stalled, peers, queued, resident, caches, queues;
	double credit_stalls, refused, dropped, gaps, uptime;
};

static volatile sig_atomic_t interrupted;

static void interrupt(int signal)
{
	(void)signal;
	interrupted = 1;
}

static int read_arguments(int argc, char **argv, struct arguments *a)
{
	static const struct option options[] = {
		{ "control", required_argument, NULL, 'c' }, { "json", no_argument, NULL, 'j' },
		{ "interval", required_argument, NULL, 'i' }, { "count", required_argument, NULL, 'n' },
		CTL_KEY_OPTIONS, { NULL, 0, NULL, 0 }
	};
	struct error err;
	int option;
	char *end;

	*a = (struct arguments){ .interval = 1 };
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'c':
			a->address = optarg;
			break;
		case 'j':
			a->json = true;
			break;
		case 'i':
			a->interval = strtod(optarg, &end);
			if (*end || !(a->interval >= 0.05 && a->interval <= 86400))
				return ctl_usage("top", "--interval: expected 0.05 to 86400 seconds");
			break;
		case 'n':
			a->count = strtoul(optarg, &end, 10);
			if (*end || !a->count)
				return ctl_usage("top", "--count: expected a number of times");
			break;
		default:
			if (!ctl_keys_option(&a->keys, option, optarg))
				return ctl_usage("top", NULL);
		}
	}
	if (argc - optind > 1)
		return ctl_usage("top", "too many arguments");
	if (optind < argc && streamid_parse(argv[optind], a->prefix, &a->prefix_size, &err))
		return ctl_usage("top", err.text);
	return 0;
}

/* --- from two samples to what is shown --- */

static struct view compare(const struct sample *now, const struct sample *before)
{
	const double span = now->uptime - before->uptime, windows = now->windows - before->windows;
	const double batches = now->batches - before->batches;
	struct view v = {
		.rows_in = (now->rows_in - before->rows_in) / span,
		.rows_out = (now->rows_out - before->rows_out) / span,
		.windows = windows / span,
		.batches = batches / span,
		.fill = batches > 0 ? (now->batch_rows - before->batch_rows) / batches / now->batch_limit : NAN,
		.busy = fmin(1, (now->busy - before->busy) / span / fmax(1, now->devices)),
		.p50 = sample_quantile(now, before, 0.5),
		.p90 = sample_quantile(now, before, 0.9),
		.p99 = sample_quantile(now, before, 0.99),
		.device = now->device, .host = now->host, .disk = now->disk, .ready = now->ready,
		.stalled = now->stalled, .peers = now->peers, .resident = now->resident_bytes,
		.caches = now->cache_bytes, .queues = now->queue_bytes, .uptime = now->uptime,
		.credit_stalls = (now->credit_stalls - before->credit_stalls) / span,
		.refused = (now->refused - before->refused) / span,
		.dropped = (now->dropped - before->dropped) / span,
		.gaps = (now->gaps - before->gaps) / span,
	};
	double seen = 0;

	for (size_t i = 0; i < now->latency.n && now->latency.n == before->latency.n; i++)
		seen += now->latency.count[i] - before->latency.count[i];
	v.wait = seen > 0 ? (now->wait - before->wait) / seen : NAN;
	v.compute = seen > 0 ? (now->compute - before->compute) / seen : NAN;
	v.send = seen > 0 ? (now->send - before->send) / seen : NAN;
	for (size_t i = 0; i < now->n_streams; i++)
		v.queued += now->streams[i].queued;
	return v;
}

static int busier(const void *a, const void *b)
{
	const struct sample_stream *x = *(struct sample_stream *const *)a, *y = *(struct sample_stream *const *)b;
	const double p = isnan(x->rate) ? -1 : x->rate, q = isnan(y->rate) ? -1 : y->rate;

	return p != q ? (p < q ? 1 : -1) : strcmp(x->id, y->id);
}

/* The streams, busiest first; free with free.  NULL: out of memory. */
static struct sample_stream **sorted(const struct sample *sample)
{
	struct sample_stream **streams = calloc(sample->n_streams ? sample->n_streams : 1, sizeof *streams);

	for (size_t i = 0; streams && i < sample->n_streams; i++)
		streams[i] = &sample->streams[i];
	if (streams && sample->n_streams)
		qsort(streams, sample->n_streams, sizeof *streams, busier);
	return streams;
}

/* --- as JSON --- */

static void json_number(const char *name, double value, const char *end, FILE *out)
{
	if (isfinite(value))
		fprintf(out, "\"%s\": %.9g%s", name, value, end);
	else
		fprintf(out, "\"%s\": null%s", name, end);
}

static void json_text(const char *text, FILE *out)
{
	fputc('"', out);
	for (; *text; text++)
		fprintf(out, *text == '"' || *text == '\\' ? "\\%c" : "%c", *text);
	fputc('"', out);
}

static void show_json(const struct sample *now, const struct view *v, struct sample_stream **streams, FILE *out)
{
	const struct {
		const char *name;
		double value;
	} numbers[] = {
		{ "uptime_s", v->uptime }, { "rows_in_per_s", v->rows_in }, { "rows_out_per_s", v->rows_out },
		{ "windows_per_s", v->windows }, { "batches_per_s", v->batches }, { "batch_fill", v->fill },
		{ "device_busy", v->busy }, { "latency_p50_s", v->p50 }, { "latency_p90_s", v->p90 },
		{ "latency_p99_s", v->p99 }, { "wait_s", v->wait }, { "compute_s", v->compute }, { "send_s", v->send },
		{ "streams_on_device", v->device }, { "streams_on_host", v->host }, { "streams_on_disk", v->disk },
		{ "streams_ready", v->ready }, { "streams_stalled", v->stalled }, { "peers", v->peers },
		{ "queued_rows", v->queued }, { "resident_bytes", v->resident }, { "cache_bytes", v->caches },
		{ "queue_bytes", v->queues }, { "credit_stalls_per_s", v->credit_stalls },
		{ "refused_per_s", v->refused }, { "dropped_per_s", v->dropped }, { "gaps_per_s", v->gaps },
	};

	fputc('{', out);
	fputs("\"state\": ", out);
	json_text(now->state, out);
	fputs(", ", out);
	for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
		json_number(numbers[i].name, numbers[i].value, ", ", out);
	fputs("\"busiest\": [", out);
	for (size_t i = 0; i < now->n_streams && i < BUSIEST; i++) {
		fputs(i ? ", {\"stream\": " : "{\"stream\": ", out);
		json_text(streams[i]->id, out);
		fputs(", ", out);
		json_number("rows_per_s", streams[i]->rate, ", ", out);
		json_number("next", streams[i]->next, ", ", out);
		json_number("done", streams[i]->done, ", ", out);
		json_number("queued_rows", streams[i]->queued, "}", out);
	}
	fputs("]}\n", out);
}

/* --- as a screen --- */

/* A number with a unit, scaled by steps of base: "12.3k", "1.50 GiB". */
static const char *scaled(double value, double base, const char *const *units, char text[24])
{
	size_t i = 0;

	if (isnan(value))
		return "-";
	for (; fabs(value) >= base && units[i + 1]; i++)
		value /= base;
	snprintf(text, 24, "%.*f%s", value >= 100 || (!i && value == floor(value)) ? 0 : value >= 10 ? 1 : 2, value,
		 units[i]);
	return text;
}

static const char *count(double value, char text[24])
{
	static const char *const units[] = { "", "k", "M", "G", "T", NULL };

	return scaled(value, 1000, units, text);
}

static const char *bytes(double value, char text[24])
{
	static const char *const units[] = { " B", " KiB", " MiB", " GiB", " TiB", NULL };

	return scaled(value, 1024, units, text);
}

static const char *seconds(double value, char text[24])
{
	static const char *const units[] = { " us", " ms", " s", NULL };

	return scaled(value * 1e6, 1000, units, text);
}

static const char *percent(double value, char text[24])
{
	if (isnan(value))
		return "-";
	snprintf(text, 24, "%.0f %%", value * 100);
	return text;
}

static const char *duration(double s, char text[24])
{
	const struct {
		double most, unit;
		const char *name;
	} units[] = { { 120, 1, "s" }, { 7200, 60, "min" }, { 172800, 3600, "h" }, { INFINITY, 86400, "days" } };
	size_t i = 0;

	while (s >= units[i].most && s < INFINITY)
		i++;
	snprintf(text, 24, "%.0f %s", s / units[i].unit, units[i].name);
	return text;
}

/* Lines end by clearing what was there before; without a terminal just so. */
static void show_head(const struct sample *now, const struct view *v, const char *end, FILE *out)
{
	char a[24], b[24], c[24], d[24], e[24], f[24];

	fprintf(out, "mamba2d %s, %s, up %s%s%s", now->state, now->what, duration(v->uptime, a), end, end);
	fprintf(out, "rows/s   %8s in  %8s out  %8s windows/s%s", count(v->rows_in, a), count(v->rows_out, b),
		count(v->windows, c), end);
	fprintf(out, "latency  %8s median  %8s 90 %%  %8s 99 %%   wait %s, compute %s, send %s%s", seconds(v->p50, a),
		seconds(v->p90, b), seconds(v->p99, c), seconds(v->wait, d), seconds(v->compute, e),
		seconds(v->send, f), end);
	fprintf(out, "batches  %8s /s  %8s full  device %s busy%s", count(v->batches, a), percent(v->fill, b),
		percent(v->busy, c), end);
	fprintf(out, "streams  %8s on the device, %s on the host, %s on disk; %s ready, %s stalled; %s producers%s",
		count(v->device, a), count(v->host, b), count(v->disk, c), count(v->ready, d), count(v->stalled, e),
		count(v->peers, f), end);
	fprintf(out, "memory   %8s, caches %s, rows and hidden states %s; %s rows queued%s", bytes(v->resident, a),
		bytes(v->caches, b), bytes(v->queues, c), count(v->queued, d), end);
	fprintf(out, "waits    %8s /s for credit; refused %s /s, dropped %s /s, gaps %s /s%s%s",
		count(v->credit_stalls, a), count(v->refused, b), count(v->dropped, c), count(v->gaps, d), end, end);
}

static void show_streams(const struct sample *now, struct sample_stream **streams, size_t lines, const char *end,
			 FILE *out)
{
	char a[24], b[24];

	fprintf(out, "%-32s %9s %12s %12s %9s %6s  %-9s  %s%s", "stream", "rows/s", "position", "done", "queued",
		"epoch", "fed by", "state", end);
	for (size_t i = 0; i < now->n_streams && i < lines; i++) {
		const struct sample_stream *s = streams[i];

		fprintf(out, "%-32.32s %9s %12.0f %12.0f %9s %6.0f  %-9s  %s%s", s->id, count(s->rate, a), s->next,
			s->done, count(s->queued, b), s->epoch, s->feeder, s->state, end);
	}
	if (now->matching > (double)(now->n_streams < lines ? now->n_streams : lines))
		fprintf(out, "of %.0f%s", now->matching, end);
}

/* Write one frame at once, so that it does not flicker. */
static int show(const struct arguments *a, const struct sample *now, const struct sample *before)
{
	const struct view view = compare(now, before);
	struct sample_stream **streams = sorted(now);
	const bool screen = isatty(STDOUT_FILENO) && !a->json;
	struct winsize size = { .ws_row = 0 };
	size_t lines = BUSIEST, length;
	char *text = NULL;
	FILE *out = streams ? open_memstream(&text, &length) : NULL;

	if (!out) {
		free(streams);
		return -1;
	}
	if (screen && !ioctl(STDOUT_FILENO, TIOCGWINSZ, &size))
		lines = size.ws_row > HEAD_LINES + 3 ? size.ws_row - HEAD_LINES - 2u : 1;
	if (screen)
		fputs("\033[H", out);
	if (a->json) {
		show_json(now, &view, streams, out);
	} else {
		show_head(now, &view, screen ? "\033[K\n" : "\n", out);
		show_streams(now, streams, lines, screen ? "\033[K\n" : "\n", out);
		fputs(screen ? "\033[J" : "\n", out);
	}
	free(streams);
	if (!fclose(out)) {
		fwrite(text, 1, length, stdout);
		fflush(stdout);
	}
	free(text);
	return 0;
}

/* --- again and again --- */

static void pause_for(double interval)
{
	const struct timespec time = { .tv_sec = (time_t)interval,
				       .tv_nsec = (long)((interval - floor(interval)) * 1e9) };

	if (!interrupted)
		nanosleep(&time, NULL);
}

/* *shown counts. */
static int watch(const struct arguments *a, struct client *client, unsigned long *shown, struct error *err)
{
	struct sample samples[2] = { { .streams = NULL }, { .streams = NULL } };
	int rc = sample_take(client, a->prefix, a->prefix_size, NULL, &samples[0], err);

	for (int turn = 1; !rc && !interrupted && (!a->count || *shown < a->count); turn = 1 - turn) {
		struct sample *now = &samples[turn], *before = &samples[1 - turn];

		pause_for(a->interval);
		if (interrupted)
			break;
		rc = sample_take(client, a->prefix, a->prefix_size, before, now, err);
		if (!rc && now->uptime > before->uptime) {
			rc = show(a, now, before) ? error_memory(err, "the screen") : 0;
			++*shown;
		}
		sample_free(before);
	}
	sample_free(&samples[0]);
	sample_free(&samples[1]);
	return rc;
}

/* Watch until it is enough; on a screen that has shown something, also beyond a restart of the daemon. */
static int run(const struct arguments *a, bool screen, struct error *err)
{
	unsigned long shown = 0;
	int rc;

	for (;;) {
		struct client *client = NULL;

		rc = ctl_connect_control(a->address, &a->keys, &client, err);
		if (!rc)
			rc = watch(a, client, &shown, err);
		client_free(client, 0);
		if (rc >= 0 || !screen || !shown || interrupted)
			return rc;
		printf("\033[H%s\033[K\n", err->text);
		fflush(stdout);
		pause_for(a->interval);
	}
}

int ctl_top(int argc, char **argv)
{
	const struct sigaction action = { .sa_handler = interrupt };
	struct arguments a;
	struct error err;
	bool screen;
	int rc = read_arguments(argc, argv, &a);

	if (rc)
		return rc;
	screen = isatty(STDOUT_FILENO) && !a.json;
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	if (screen)
		fputs("\033[?1049h\033[?25l\033[2J", stdout); /* a screen of its own, no cursor */
	rc = run(&a, screen, &err);
	if (screen) {
		fputs("\033[?25h\033[?1049l", stdout);
		fflush(stdout);
	}
	if (rc > 0)
		return CTL_REFUSED;
	if (rc && !interrupted)
		return ctl_fail("top", err.code == REFUSED_DENIED ? CTL_REFUSED : CTL_NO_DAEMON, &err);
	return CTL_OK;
}
