/* Reads a folder that `numpygpt trace -o folder/` wrote: raw float32 tensors and index.json.
   cc -O2 -o read_trace read_trace.c && ./read_trace folder      prints name, shape, sum of each. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { char name[256]; long shape[8]; int ndim; long size; float *data; } Tensor;

/* A line of the index: "ln_f": {"file": "ln_f.f32", "shape": [1, 4, 64]} ; 1 if it is one. */
static int read_tensor(const char *folder, char *line, Tensor *t) {
    char file[256], path[1024];
    if (sscanf(line, " \"%255[^\"]\": {\"file\": \"%255[^\"]\", \"shape\": [", t->name, file) != 2)
        return 0;
    t->ndim = 0;
    t->size = 1;
    for (char *at = strrchr(line, '[') + 1; *at && *at != ']' && t->ndim < 8;) {
        t->shape[t->ndim] = strtol(at, &at, 10);
        t->size *= t->shape[t->ndim++];
        at += strspn(at, ", ");
    }
    snprintf(path, sizeof path, "%s/%s", folder, file);
    FILE *f = fopen(path, "rb"); /* little-endian, as x86 and ARM have it in memory */
    t->data = malloc(t->size * sizeof(float));
    if (!f || fread(t->data, sizeof(float), t->size, f) != (size_t)t->size) exit(1);
    fclose(f);
    return 1;
}

int main(int argc, char **argv) {
    char line[4096], path[1024];
    snprintf(path, sizeof path, "%s/index.json", argc > 1 ? argv[1] : ".");
    FILE *index = fopen(path, "r");
    if (!index) { fprintf(stderr, "cannot open %s\n", path); return 1; }
    Tensor t;
    while (fgets(line, sizeof line, index)) {
        if (!read_tensor(argv[1], line, &t)) continue;
        double sum = 0;
        for (long i = 0; i < t.size; i++) if (t.data[i] > -1e30f) sum += t.data[i]; /* not the mask */
        printf("%s", t.name);
        for (int i = 0; i < t.ndim; i++) printf(" %ld", t.shape[i]);
        printf(" %.9g\n", sum);
        free(t.data);
    }
    return 0;
}
