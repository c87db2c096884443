/* The log: see log.h.  Lines are formatted into one buffer and written at once, so that they never interleave. */
#include "daemon/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "daemon/systemd.h"
#include "protocol/streamid.h"

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

/* To stderr, in one write. */
static void write_line(enum log_level level, const char *text)
{
	char line[1024];
	int n;

	if (isatty(STDERR_FILENO))
		n = snprintf(line, sizeof line, "%s\n", text);
	else
		n = snprintf(line, sizeof line, "<%d>%s\n", priority[level], text);
	if (write(STDERR_FILENO, line, (size_t)n) < 0)
		return; /* nobody is left to tell */
}

static void write_about(enum log_level level, const struct log_about *about, const char *format, va_list args)
	__attribute__((format(printf, 3, 0)));

static void write_about(enum log_level level, const struct log_about *about, const char *format, va_list args)
{
	static int journal = -1; /* not known yet */
	char text[1000], stream[STREAMID_TEXT_MAX];

	if (!log_enabled(level))
		return;
	if (journal < 0)
		journal = systemd_journal();
	vsnprintf(text, sizeof text, format, args);
	for (char *c = text; *c; c++)
		if ((unsigned char)*c < ' ')
			*c = ' ';
	if (!journal)
		write_line(level, text);
	else
		systemd_log(priority[level], text,
			    about->stream_size ? streamid_format(about->stream, about->stream_size, stream) : NULL,
			    about->code);
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
