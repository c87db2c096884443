/*
 * Errors as values.  A function that can fail returns 0 or a negative code and, when it fails, writes one sentence
 * into its caller's struct error: what was wrong and what was expected.  Nothing is allocated, nothing is logged.
 * Control characters in the text become question marks, so that it stays one line of a log.
 */
#ifndef MODEL_ERROR_H
#define MODEL_ERROR_H

enum error_code {
	ERR_SYSTEM = -1,      /* a system call failed; the text ends with strerror */
	ERR_MEMORY = -2,      /* out of host memory */
	ERR_FORMAT = -3,      /* a file or message is not what its format says */
	ERR_UNSUPPORTED = -4, /* well-formed, but asks for something we do not do */
	ERR_ARGUMENT = -5,    /* a value from configuration or command line is out of range */
	ERR_DEVICE = -6,      /* this batch failed on the device; the device lives */
	ERR_DEVICE_LOST = -7, /* the device is gone: close it */
	ERR_REFUSED = -100    /* protocol/refusal.h counts down from here */
};

struct error {
	int code;
	char text[384];
};

/* Write code and the printf-formatted text to *err (which may be NULL) and return code. */
int error_set(struct error *err, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* As error_set with ERR_SYSTEM, appending ": " and strerror(errno). */
int error_system(struct error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* error_set with ERR_MEMORY, saying what was being allocated. */
int error_memory(struct error *err, const char *what);

#endif
