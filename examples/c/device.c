/* The last steps of a head on a microcontroller, in C99: symbols to a payload, the payload into a frame.
 *
 * The symbols are what the head's program gives, one byte each, as (batch, channels, space). `compoff export-c FOLDER`
 * writes compoff_export.h, which knows the export's tables. Nothing here allocates, and nothing needs floating point.
 * The bytes are those of Python's Head: docs/reference/coding.md and wire-format.md explain them.
 *
 *     compoff export-c export/head --output compoff_export.h
 *     cc -std=c99 -O2 device.c -o device
 *     ./device hello > hello.bin && ./device request < symbols.bin > request.bin
 */

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "compoff_export.h"

enum { RAW = 0, RANGE = 1 };                                  /* codings of a payload */
enum { HELLO = 1, REQUEST = 3, FRAME_BYTES = 16 };            /* types of frames; what a frame adds to its body */
enum { HELLO_BYTES = 44 + FRAME_BYTES, LATENT = COMPOFF_LATENT_CHANNELS * COMPOFF_POSITIONS };

static uint32_t crc32(uint32_t crc, const uint8_t *data, size_t length)
{
    crc = ~crc;
    for (size_t i = 0; i < length; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (0xEDB88320u & (0u - (crc & 1)));
    }
    return ~crc;
}

static uint8_t *big_endian(uint8_t *out, uint32_t value, int bytes)
{
    for (int i = bytes - 1; i >= 0; i--) *out++ = (uint8_t)(value >> 8 * i);
    return out;
}

/* The symbol that is sent for one of the latent; all positions of a channel, sample after sample, then the next channel. */
static uint8_t sent(const uint8_t *symbols, size_t batch, size_t index)
{
    size_t channel = index / (batch * COMPOFF_POSITIONS), place = index % (batch * COMPOFF_POSITIONS);
    size_t sample = place / COMPOFF_POSITIONS, position = place % COMPOFF_POSITIONS;
    return compoff_sent[symbols[sample * LATENT + channel * COMPOFF_POSITIONS + position]];
}

/* Bytes in order, where a carry may still run through the last ones, and zeros at the end are left out. */
typedef struct {
    uint8_t *out;
    size_t length, limit, zeros, full; /* full: bytes of 255 behind `last`, through which a carry would run */
    int last, overflow;                /* last: the last byte before them, -1 for none yet */
} Sink;

static void put(Sink *sink, uint8_t byte)
{
    if (byte == 0) {
        sink->zeros++;
        return;
    }
    if (sink->length + sink->zeros >= sink->limit) {
        sink->overflow = 1;
        return;
    }
    for (; sink->zeros; sink->zeros--) sink->out[sink->length++] = 0;
    sink->out[sink->length++] = byte;
}

static void settle(Sink *sink)
{
    if (sink->last >= 0) put(sink, (uint8_t)sink->last);
    for (; sink->full; sink->full--) put(sink, 255);
}

static void append(Sink *sink, uint8_t byte)
{
    if (byte == 255 && sink->last >= 0) {
        sink->full++;
        return;
    }
    settle(sink);
    sink->last = byte;
}

static void carry(Sink *sink)
{
    sink->last++;
    if (!sink->full) return;
    put(sink, (uint8_t)sink->last);
    for (; sink->full > 1; sink->full--) put(sink, 0);
    sink->full = 0;
    sink->last = 0;
}

/* The fewest bytes that, with zeros after them, lie in the interval from low on. */
static void finish(Sink *sink, uint64_t low, uint64_t span)
{
    uint64_t end = low + span;
    if (low && end < low && end > 0) {
        carry(sink);
    } else if (low) {
        for (int bytes = 1; bytes <= 8; bytes++) {
            uint64_t mask = bytes == 8 ? 0 : UINT64_MAX >> 8 * bytes;
            uint64_t value = low & mask ? (low | mask) + 1 : low;
            if (value == 0 || value - low >= span) continue; /* 0: past the end of 64 bits */
            for (int i = 0; i < bytes; i++) append(sink, (uint8_t)(value >> (56 - 8 * i)));
            break;
        }
    }
    settle(sink);
}

/* Range coding; returns the number of bytes, or `limit` where it would be as many or more. */
static size_t range_code(uint8_t *out, size_t limit, const uint8_t *symbols, size_t batch)
{
    Sink sink = {out, 0, limit, 0, 0, -1, 0};
    uint64_t low = 0, span = UINT64_MAX;
    for (size_t index = 0; index < batch * COMPOFF_CHANNELS * COMPOFF_POSITIONS && !sink.overflow; index++) {
        const uint32_t *starts = compoff_starts[index / (batch * COMPOFF_POSITIONS)];
        uint8_t symbol = sent(symbols, batch, index);
        uint64_t scale = span >> 24, step = scale * starts[symbol];
        low += step;
        if (low < step) carry(&sink);
        span = scale * (starts[symbol + 1] - starts[symbol]);
        if (span <= UINT32_MAX) {
            for (int shift = 56; shift >= 32; shift -= 8) append(&sink, (uint8_t)(low >> shift));
            low <<= 32;
            span <<= 32;
        }
    }
    finish(&sink, low, span);
    return sink.overflow ? limit : sink.length;
}

/* Every symbol in the same few bits, the highest first. */
static size_t raw_code(uint8_t *out, const uint8_t *symbols, size_t batch)
{
    size_t count = batch * COMPOFF_CHANNELS * COMPOFF_POSITIONS, bytes = (count * COMPOFF_BITS + 7) / 8;
    memset(out, 0, bytes);
    for (size_t bit = 0; bit < count * COMPOFF_BITS; bit++) {
        uint8_t symbol = sent(symbols, batch, bit / COMPOFF_BITS);
        unsigned value = symbol >> (COMPOFF_BITS - 1 - bit % COMPOFF_BITS) & 1;
        out[bit / 8] |= (uint8_t)(value << (7 - bit % 8));
    }
    return bytes;
}

/* The payload of a batch. `out` has room for COMPOFF_MAX_PAYLOAD(batch) bytes; returns how many were written, or 0 where
 * a symbol or the batch is out of range. */
size_t compoff_payload(uint8_t *out, const uint8_t *symbols, size_t batch)
{
    if (batch < 1 || batch > COMPOFF_MAX_BATCH) return 0;
    for (size_t i = 0; i < batch * LATENT; i++) {
        unsigned symbol = symbols[i]; /* wider than a byte: an export may have all 256 symbols */
        if (symbol >= COMPOFF_LATENT_SYMBOLS) return 0;
    }
    uint8_t *next = out + 1;
    *next++ = COMPOFF_QUALITY;
    size_t rest = batch;
    for (; rest > 127; rest >>= 7) *next++ = (uint8_t)(rest | 128);
    *next++ = (uint8_t)rest;
    size_t most = (batch * COMPOFF_CHANNELS * COMPOFF_POSITIONS * COMPOFF_BITS + 7) / 8;
    size_t length = range_code(next, most, symbols, batch);
    out[0] = (uint8_t)(1 << 4 | (length < most ? RANGE : RAW)); /* payload format 1 */
    next += length < most ? length : raw_code(next, symbols, batch);
    uint32_t crc = crc32(crc32(0, compoff_artifact_id, 32), out, (size_t)(next - out));
    return (size_t)(big_endian(next, crc, 4) - out);
}

/* A frame around the `length` bytes that lie at out + 12; returns its length. Request ids count from 1. */
size_t compoff_frame(uint8_t *out, uint8_t type, uint32_t request_id, uint16_t deadline_ms, size_t length)
{
    uint8_t *next = out;
    *next++ = type;
    *next++ = 0; /* route: the first offer of HELLO */
    next = big_endian(next, deadline_ms, 2);
    next = big_endian(next, request_id, 4);
    next = big_endian(next, (uint32_t)length, 4) + length;
    return (size_t)(big_endian(next, crc32(0, out, (size_t)(next - out)), 4) - out);
}

/* The first frame of a connection: one offer, whole replies, no token. `out` has room for HELLO_BYTES. */
size_t compoff_hello(uint8_t *out)
{
    uint8_t *body = out + 12;
    memset(body, 0, 44);
    memcpy(body, "COFF\2\1", 6); /* protocol version 2, one offer */
    memcpy(body + 6, compoff_artifact_id, 32);
    return compoff_frame(out, HELLO, 0, 0, 44);
}

#ifndef COMPOFF_NO_MAIN
int main(int count, char **arguments)
{
    static uint8_t symbols[LATENT], out[COMPOFF_MAX_PAYLOAD(1) + FRAME_BYTES + HELLO_BYTES];
    const char *what = count > 1 ? arguments[1] : "";
    size_t length = 0;
    if (!strcmp(what, "hello")) {
        length = compoff_hello(out);
    } else if (!strcmp(what, "request") && fread(symbols, 1, LATENT, stdin) == LATENT) {
        length = compoff_payload(out + 12, symbols, 1);
        if (length) length = compoff_frame(out, REQUEST, 1, 5000, length);
    }
    if (!length) fprintf(stderr, "usage: device hello | device request < %d symbols, each a byte\n", LATENT);
    return length && fwrite(out, 1, length, stdout) == length ? 0 : 1;
}
#endif
