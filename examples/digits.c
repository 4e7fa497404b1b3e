/* Read scans of digits from a file, ask digits.so for the probabilities of the ten classes, print the best one of each.
 *
 *     cc -I digits-out examples/digits.c digits-out/digits.so -Wl,-rpath,digits-out -o digits
 *     ./digits digits-out/scans.bin
 *
 * The file holds an int32, the number of scans, and 64 floats in 0..1 for each scan. examples/digits.py writes it, and
 * digits.so and digits.h as well.
 */
#define _POSIX_C_SOURCE 200112L
#include <stdio.h>
#include <stdlib.h>

#include "digits.h"

enum { PIXELS = 64, CLASSES = 10, ALIGNMENT = 64 };

static void *allocate(size_t bytes)
{
    void *memory = NULL;
    if (posix_memalign(&memory, ALIGNMENT, bytes ? bytes : ALIGNMENT) != 0) {
        fprintf(stderr, "digits: out of memory\n");
        exit(1);
    }
    return memory;
}

static float *read_scans(const char *path, int32_t *count)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        exit(1);
    }
    if (fread(count, sizeof *count, 1, file) != 1 || *count < 0) {
        fprintf(stderr, "%s: not a file of scans\n", path);
        exit(1);
    }
    size_t floats = (size_t)*count * PIXELS;
    float *scans = allocate(floats * sizeof *scans);
    if (fread(scans, sizeof *scans, floats, file) != floats) {
        fprintf(stderr, "%s: ends too early\n", path);
        exit(1);
    }
    fclose(file);
    return scans;
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s FILE\n", argv[0]);
        return 2;
    }
    if (digits_abi_version() != DIGITS_ABI_VERSION) {
        fprintf(stderr, "digits.so and digits.h do not belong together\n");
        return 1;
    }

    int32_t count;
    float *scans = read_scans(argv[1], &count);
    float *probabilities = allocate((size_t)count * CLASSES * sizeof *probabilities);
    void *workspace = allocate((size_t)digits_workspace_size(count)); /* the library itself never allocates */

    int32_t error = digits_run(scans, probabilities, count, workspace);
    if (error != DIGITS_OK) {
        fprintf(stderr, "digits_run: error %d\n", (int)error);
        return 1;
    }

    for (int32_t i = 0; i < count; i++) {
        const float *p = probabilities + (size_t)i * CLASSES;
        int best = 0;
        for (int c = 1; c < CLASSES; c++)
            if (p[c] > p[best])
                best = c;
        printf("%d\n", best);
    }
    free(workspace);
    free(probabilities);
    free(scans);
    return 0;
}
