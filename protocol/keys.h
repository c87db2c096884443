/*
 * CURVE keys (ZeroMQ RFC 26) and the files that hold them.  A key is 32 bytes, written as 40 characters of Z85.
 *
 * A key file has one line "secret-key KEY" or "public-key KEY"; empty lines and lines that start with # are ignored.
 */
#ifndef PROTOCOL_KEYS_H
#define PROTOCOL_KEYS_H

#include <stdbool.h>

#include "model/error.h"

#define KEY_BYTES 32
#define KEY_TEXT 41 /* with the NUL */

struct key_pair {
	char public_key[KEY_TEXT], secret_key[KEY_TEXT];
};

int keys_generate(struct key_pair *ret_pair, struct error *err);

/*
 * Write the secret key to path, for its owner alone, and the public key to path.pub, for everybody.  Neither may exist:
 * a key that is in use is not overwritten.
 */
int keys_write(const char *path, const struct key_pair *pair, struct error *err);

/* Read a secret key and derive its public one.  A file of ours that others can read is refused. */
int keys_read_secret(const char *path, struct key_pair *ret_pair, struct error *err);
int keys_read_public(const char *path, char ret_key[KEY_TEXT], struct error *err);

/* false: text is no key. */
bool keys_parse(const char *text, unsigned char ret_key[KEY_BYTES]);
void keys_format(const unsigned char key[KEY_BYTES], char text[KEY_TEXT]);

#endif
