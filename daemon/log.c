/* The log: see log.h.  Lines are formatted into one buffer and written at once, so that they never interleave. */
#include "daemon/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "daemon/systemd.h"

static enum log_level log_level = LOG_LEVEL_INFO;

/* syslog's numbers */
static const int priority[] = {
	[LOG_LEVEL_ERROR] = 3, [LOG_LEVEL_WARNING] = 4, [LOG_LEVEL_NOTICE] = 5, [LOG_LEVEL_INFO] = 6,
	[LOG_LEVEL_DEBUG] = 7
};

void log_set_level(enum log_level level)
{
	log_level = level;
}

bool log_enabled(enum log_level level)
{
	return level <= log_level;
}

/* Now, as RFC 3339 has it: UTC, milliseconds. */
static const char *now_text(char text[sizeof "2000-01-01T00:00:00.000Z"])
{
	struct timespec now;
	struct tm utc;

	clock_gettime(CLOCK_REALTIME, &now);
	gmtime_r(&now.tv_sec, &utc);
	strftime(text, sizeof "2000-01-01T00:00:00", "%Y-%m-%dT%H:%M:%S", &utc);
	snprintf(text + strlen(text), sizeof ".000Z", ".%03uZ", (unsigned)(now.tv_nsec / 1000000) % 1000);
	return text;
}

/* To stderr, in one write. */
static void write_line(enum log_level level, const char *text)
{
	char line[LOG_TEXT_MAX + 64], severity[8] = "", now[sizeof "2000-01-01T00:00:00.000Z"];
	int n;

	if (!isatty(STDERR_FILENO))
		snprintf(severity, sizeof severity, "<%d>", priority[level]);
	n = snprintf(line, sizeof line, "%s%s %s\n", severity, now_text(now), text);
	if (write(STDERR_FILENO, line, (size_t)n) < 0)
		return; /* nobody is left to tell */
}

static void write_about(enum log_level level, const struct log_about *about, const char *format, va_list args)
	__attribute__((format(printf, 3, 0)));

static void write_about(enum log_level level, const struct log_about *about, const char *format, va_list args)
{
	static int journal = -1; /* not known yet */
	char text[LOG_TEXT_MAX], stream[STREAMID_TEXT_MAX];
	int n = 0;

	if (!log_enabled(level))
		return;
	if (journal < 0)
		journal = systemd_journal();
	if (about->stream_size)
		n = snprintf(text, sizeof text, "stream %s: ",
			     streamid_format(about->stream, about->stream_size, stream));
	vsnprintf(text + n, sizeof text - (size_t)n, format, args);
	for (char *c = text; *c; c++)
		if ((unsigned char)*c < ' ')
			*c = ' ';
	if (!journal)
		write_line(level, text);
	else
		systemd_log(priority[level], text, about->stream_size ? stream : NULL, about->code);
}

void log_line(enum log_level level, const char *format, ...)
{
	const struct log_about nothing = { NULL, 0, NULL };
	va_list args;

	va_start(args, format);
	write_about(level, &nothing, format, args);
	va_end(args);
}

void log_about(enum log_level level, const struct log_about *about, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	write_about(level, about, format, args);
	va_end(args);
}

bool log_tap_open(struct log_tap *tap, unsigned burst)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	if (now.tv_sec != tap->second) {
		tap->second = now.tv_sec;
		tap->passed = 0;
	}
	if (tap->passed >= burst) {
		tap->held++;
		return false;
	}
	tap->passed++;
	tap->missed = tap->held;
	tap->held = 0;
	return true;
}
