/* What NumPy cannot do in one pass: packed integers of MindRecord, walks from length to length, and a shuffle and a
 * blend whose every step hangs on the one before. Each function does what one in Python beside it does, which is used
 * where this file was not compiled, and which the tests compare it with. Arguments are buffers, so NumPy arrays; all
 * work is done without Python's global lock.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "MindRecord's numbers are read as they lie in memory, which takes a little-endian machine"
#endif

/* gcc and clang compile the wide way for every x86-64, and whether the processor has it is asked at run time. */
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HAS_WIDE 1
#include <immintrin.h>
#else
#define HAS_WIDE 0
#endif

enum { CODES = 256, PER_CODE = 4, WINDOW = 8, LANE = 4, AHEAD = 2048, CACHE_LINE = 64 };

static uint8_t widths[CODES][PER_CODE]; /* bytes of each of the four values that a byte of codes stands for */
static uint8_t totals[CODES];           /* and of all four */
static uint8_t has_long[CODES];         /* whether one of them has eight */
static uint8_t moves[CODES][PER_CODE * LANE]; /* which byte of sixteen goes where, for values of up to four bytes */
static int32_t shifts[CODES][PER_CODE];       /* how many bits each value then stands too high */
static int is_wide;

static void fill_tables(void) {
    for (int code = 0; code < CODES; code++) {
        totals[code] = 0;
        has_long[code] = 0;
        for (int place = 0; place < PER_CODE; place++) {
            int width = 1 << ((code >> (6 - 2 * place)) & 3);
            for (int byte = 0; byte < LANE; byte++) { /* the value's bytes go to the upper end of its lane */
                int from = byte - (LANE - width);
                moves[code][place * LANE + byte] = (uint8_t)(from < 0 || width > LANE ? 0x80 : totals[code] + from);
            }
            shifts[code][place] = width > LANE ? 0 : 8 * (LANE - width);
            widths[code][place] = (uint8_t)width;
            totals[code] = (uint8_t)(totals[code] + width);
            has_long[code] |= width > LANE;
        }
    }
#if HAS_WIDE
    __builtin_cpu_init();
    is_wide = __builtin_cpu_supports("avx2");
#endif
}

static uint64_t big_endian(const uint8_t *bytes, int count) {
    uint64_t value = 0;
    for (int place = 0; place < count; place++) value = value << 8 | bytes[place];
    return value;
}

/* A little-endian signed number of 1, 2, 4 or 8 bytes. */
static int64_t signed_number(const uint8_t *bytes, int width) {
    uint64_t word = 0;
    memcpy(&word, bytes, (size_t)width);
    int unused = 64 - 8 * width;
    return (int64_t)(word << unused) >> unused;
}

/* The same where eight bytes may be read. */
static inline int64_t number_in_window(const uint8_t *bytes, int width) {
    uint64_t word;
    memcpy(&word, bytes, WINDOW);
    int unused = 64 - 8 * width;
    return (int64_t)(word << unused) >> unused;
}

#if HAS_WIDE
/* Four values at a time, while there are sixteen bytes to load and no value of eight; how many values were unpacked. */
__attribute__((target("avx2"))) static uint64_t unpack_wide(const uint8_t **codes, const uint8_t **at,
                                                            const uint8_t *end, uint64_t count, int64_t *out) {
    uint64_t place = 0;
    const uint8_t *code = *codes, *value = *at;
    for (; place + PER_CODE <= count && end - value >= PER_CODE * LANE && !has_long[*code]; place += PER_CODE, code++) {
        __builtin_prefetch(value + AHEAD);
        __m128i bytes = _mm_loadu_si128((const __m128i *)value);
        __m128i lanes = _mm_shuffle_epi8(bytes, _mm_loadu_si128((const __m128i *)moves[*code]));
        lanes = _mm_srav_epi32(lanes, _mm_loadu_si128((const __m128i *)shifts[*code]));
        _mm256_storeu_si256((__m256i *)(out + place), _mm256_cvtepi32_epi64(lanes));
        value += totals[*code];
    }
    *codes = code, *at = value;
    return place;
}
#endif

/* One packed array of exactly `count` values into `out`; 0 if the bytes are anything else. `widest`: 4 or 8 bytes. */
static int unpack(const uint8_t *bytes, uint64_t size, uint64_t count, int widest, int64_t *out) {
    if (size < 4 || big_endian(bytes, 4) != count) return 0;
    uint64_t code_bytes = (count + PER_CODE - 1) / PER_CODE;
    if (size - 4 < code_bytes + count) return 0;
    const uint8_t *codes = bytes + 4, *at = codes + code_bytes, *end = bytes + size;
    uint64_t place = 0;
#if HAS_WIDE
    if (is_wide) place = unpack_wide(&codes, &at, end, count, out);
#endif
    for (; place + PER_CODE <= count && end - at >= PER_CODE * WINDOW; place += PER_CODE, codes++) {
        const uint8_t *width = widths[*codes];
        if (widest < 8 && (width[0] | width[1] | width[2] | width[3]) & 8) return 0;
        const uint8_t *second = at + width[0], *third = second + width[1], *fourth = third + width[2];
        out[place] = number_in_window(at, width[0]);
        out[place + 1] = number_in_window(second, width[1]);
        out[place + 2] = number_in_window(third, width[2]);
        out[place + 3] = number_in_window(fourth, width[3]);
        at += totals[*codes];
    }
    for (; place < count; place++) {
        int width = widths[codes[0]][place % PER_CODE];
        if (width > widest || end - at < width) return 0;
        out[place] = signed_number(at, width);
        at += width;
        if (place % PER_CODE == PER_CODE - 1) codes++;
    }
    return at == end;
}

/* The array of version 2.0, as it lies in memory. */
static int widen(const uint8_t *bytes, uint64_t size, uint64_t count, int width, int64_t *out) {
    if (size != count * (uint64_t)width) return 0;
    for (uint64_t place = 0; place < count; place++) out[place] = signed_number(bytes + place * (uint64_t)width, width);
    return 1;
}

/* The blob column `field` of a record that takes `size` bytes with its length; 0 if there is none. */
static const uint8_t *find_field(const uint8_t *record, uint64_t size, int field, int fields, uint64_t *found) {
    uint64_t length;
    if (size < 8) return NULL;
    memcpy(&length, record, 8);
    if (length != size - 8) return NULL;
    const uint8_t *at = record + 8;
    uint64_t left = length;
    if (fields == 1) {
        *found = left;
        return at;
    }
    const uint8_t *result = NULL;
    for (int number = 0; number < fields; number++) {
        if (left < 8) return NULL;
        uint64_t part = big_endian(at, 8);
        at += 8, left -= 8;
        if (part > left) return NULL;
        if (number == field) {
            *found = part;
            result = at;
        }
        at += part, left -= part;
    }
    return left == 0 ? result : NULL;
}

static int fits(const Py_buffer *view, Py_ssize_t item, Py_ssize_t count) {
    return view->itemsize == item && view->len == item * count;
}

/* Where records lie, as RowTable of mindrecord/rows.py has it: see there. */
typedef struct {
    const int64_t *first_rows, *first_places, *begins;
    const uint32_t *places;
    const uint8_t *known;
    Py_ssize_t groups;
    int64_t stride;
} Table;

/* The row group of a row; -1 if there is none. */
static Py_ssize_t group_of(const Table *table, int64_t row) {
    Py_ssize_t low = 0, high = table->groups; /* first_rows[low] <= row < first_rows[high] */
    if (row < 0 || row >= table->first_rows[high]) return -1;
    while (high - low > 1) {
        Py_ssize_t middle = (low + high) / 2;
        if (table->first_rows[middle] <= row) low = middle;
        else high = middle;
    }
    return low;
}

typedef struct {
    int field, fields, width, packed;
} Form;

/* The nearest place at or before a row of a group whose places are known; `hops`: how many records lie between. */
static int64_t place_before(const Table *table, Py_ssize_t group, int64_t row, int64_t *hops) {
    int64_t number = row - table->first_rows[group];
    *hops = number % table->stride;
    return table->begins[group] + table->places[table->first_places[group] + number / table->stride];
}

static int unpack_record(const uint8_t *bytes, Py_ssize_t size, const Table *table, int64_t row, Py_ssize_t group,
                         const Form *form, uint64_t count, int64_t *out) {
    int64_t hops, at = place_before(table, group, row, &hops);
    int64_t limit = table->begins[group] + table->places[table->first_places[group + 1] - 1];
    uint64_t length = 0, found_size = 0;
    if (at < 0 || limit > size) return 0;
    for (; hops >= 0; hops--) {
        if (limit - at < 8) return 0;
        memcpy(&length, bytes + at, 8);
        if (length > (uint64_t)(limit - at - 8)) return 0;
        if (hops > 0) at += 8 + (int64_t)length;
    }
    const uint8_t *found = find_field(bytes + at, 8 + length, form->field, form->fields, &found_size);
    if (found == NULL) return 0;
    return form->packed ? unpack(found, found_size, count, form->width, out)
                        : widen(found, found_size, count, form->width, out);
}

/* Ask for the beginning of a record that is read soon: with rows in random order nothing else knows where it lies. */
static void expect(const uint8_t *bytes, Py_ssize_t size, const Table *table, int64_t row) {
    Py_ssize_t group = group_of(table, row);
    if (group < 0 || !table->known[group]) return;
    int64_t hops, begin = place_before(table, group, row, &hops);
    for (int64_t at = begin; at >= 0 && at < begin + AHEAD && at < size; at += CACHE_LINE) __builtin_prefetch(bytes + at);
}

/* The number of the first row that does not hold what it should, or -1; -2 less a group whose places are not known. */
static Py_ssize_t unpack_all(const Py_buffer *data, const Table *table, const int64_t *rows, Py_ssize_t count,
                             const Form *form, uint64_t length, int64_t *out) {
    for (Py_ssize_t number = 0; number < count; number++) {
        Py_ssize_t group = group_of(table, rows[number]);
        if (group < 0) return number;
        if (!table->known[group]) return -2 - group;
        if (number + 1 < count) expect(data->buf, data->len, table, rows[number + 1]);
        if (!unpack_record(data->buf, data->len, table, rows[number], group, form, length,
                           out + (uint64_t)number * length))
            return number;
    }
    return -1;
}

PyDoc_STRVAR(unpack_rows_doc,
             "unpack_rows(data, rows, first_rows, first_places, begins, places, known, stride, field, fields, width,\n"
             "            packed, out) -> int\n\n"
             "Fill the rows of out, int64 (B, T), with blob column number `field` of `fields` of the records `rows`\n"
             "(int64, (B,)), whose places are those of a RowTable. -1; or the number of the first record that does not\n"
             "hold T integers of up to `width` bytes; or -2 - g where the places of row group g are not known yet.");

static PyObject *unpack_rows(PyObject *self, PyObject *args) {
    Py_buffer data, rows, first_rows, first_places, begins, places, known, out;
    Form form;
    long long stride;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*y*y*y*y*y*Liiipw*", &data, &rows, &first_rows, &first_places, &begins, &places,
                          &known, &stride, &form.field, &form.fields, &form.width, &form.packed, &out))
        return NULL;
    Py_ssize_t count = rows.len / 8, groups = begins.len / 8, result = -1;
    Table table = {first_rows.buf, first_places.buf, begins.buf, places.buf, known.buf, groups, stride};
    int sound = fits(&rows, 8, count) && count > 0 && fits(&begins, 8, groups) && groups > 0 && stride > 0 &&
                fits(&first_rows, 8, groups + 1) && fits(&first_places, 8, groups + 1) && fits(&known, 1, groups) &&
                fits(&places, 4, (Py_ssize_t)table.first_places[groups]) && out.itemsize == 8 &&
                out.len % (8 * count) == 0 && form.field >= 0 && form.field < form.fields &&
                (form.width == 4 || form.width == 8);
    if (sound) {
        uint64_t length = (uint64_t)(out.len / (8 * count));
        Py_BEGIN_ALLOW_THREADS
        result = unpack_all(&data, &table, rows.buf, count, &form, length, out.buf);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data), PyBuffer_Release(&rows), PyBuffer_Release(&first_rows);
    PyBuffer_Release(&first_places), PyBuffer_Release(&begins), PyBuffer_Release(&places);
    PyBuffer_Release(&known), PyBuffer_Release(&out);
    if (!sound) {
        PyErr_SetString(PyExc_ValueError, "unpack_rows: the arguments do not fit each other");
        return NULL;
    }
    return PyLong_FromSsize_t(result);
}

PyDoc_STRVAR(boundaries_doc,
             "boundaries(data, begin, end, rows, stride, out) -> bool\n\n"
             "Walk over the records from begin to end of data, each behind its length of eight bytes, and write where\n"
             "each stride-th one begins, less begin, and where the last one ends into out, uint32. Whether `rows`\n"
             "records fill the stretch.");

static PyObject *boundaries(PyObject *self, PyObject *args) {
    Py_buffer data, out;
    long long begin, end, rows, stride;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*LLLLw*", &data, &begin, &end, &rows, &stride, &out)) return NULL;
    int filled = 0;
    if (out.itemsize == 4 && rows >= 0 && stride > 0 && out.len / 4 == (rows + stride - 1) / stride + 1 && begin >= 0 &&
        begin <= end && end <= data.len && end - begin <= UINT32_MAX) {
        const uint8_t *bytes = (const uint8_t *)data.buf + begin;
        uint32_t *places = out.buf;
        uint64_t size = (uint64_t)(end - begin), at = 0, length;
        Py_BEGIN_ALLOW_THREADS
        long long row = 0;
        for (; row < rows && size - at >= 8; row++) {
            if (row % stride == 0) places[row / stride] = (uint32_t)at;
            memcpy(&length, bytes + at, 8);
            if (length > size - at - 8) break;
            at += 8 + length;
        }
        filled = row == rows && at == size;
        places[out.len / 4 - 1] = (uint32_t)size;
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data), PyBuffer_Release(&out);
    return PyBool_FromLong(filled);
}

/* minstd_rand0 and std::uniform_int_distribution over it, for fewer than 2**31 - 2 numbers. */
enum { MULTIPLIER = 16807, MODULUS = 2147483647, RANGE = MODULUS - 2 };

static uint64_t below(uint64_t *state, uint64_t count) {
    uint64_t scale = RANGE / count, limit = count * scale;
    do *state = *state * MULTIPLIER % MODULUS;
    while (*state - 1 >= limit);
    return (*state - 1) / scale;
}

static void swap(int64_t *items, uint64_t one, uint64_t other) {
    int64_t kept = items[one];
    items[one] = items[other];
    items[other] = kept;
}

static void shuffle_items(int64_t *items, uint64_t size, uint64_t state) {
    uint64_t place = 1;
    if (RANGE / size < size) { /* one number has not enough range for two places */
        for (; place < size; place++) swap(items, place, below(&state, place + 1));
        return;
    }
    if (size % 2 == 0) swap(items, place++, below(&state, 2));
    for (; place < size; place += 2) {
        uint64_t both = below(&state, (place + 1) * (place + 2));
        swap(items, place, both / (place + 2));
        swap(items, place + 1, both % (place + 2));
    }
}

PyDoc_STRVAR(shuffle_doc,
             "shuffle(items, seed)\n\n"
             "Shuffle items, int64 (n,), in place as libstdc++'s std::shuffle with std::default_random_engine does.");

static PyObject *shuffle(PyObject *self, PyObject *args) {
    Py_buffer items;
    unsigned long long seed;
    (void)self;
    if (!PyArg_ParseTuple(args, "w*K", &items, &seed)) return NULL;
    uint64_t size = (uint64_t)(items.len / 8), state = seed % 4294967296ULL % MODULUS;
    int sound = items.itemsize == 8 && size < RANGE;
    if (sound && size > 1) {
        Py_BEGIN_ALLOW_THREADS
        shuffle_items(items.buf, size, state ? state : 1);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&items);
    if (!sound) {
        PyErr_SetString(PyExc_ValueError, "shuffle: this takes fewer than 2**31 - 3 numbers of int64");
        return NULL;
    }
    Py_RETURN_NONE;
}

/* The dataset that is furthest behind its share; the first of equals. One that has given all drops out. */
static Py_ssize_t furthest_behind(const double *weights, const double *limits, const double *taken, Py_ssize_t datasets,
                                  double place) {
    Py_ssize_t best = 0;
    double most = -INFINITY;
    for (Py_ssize_t dataset = 0; dataset < datasets; dataset++) {
        if (taken[dataset] >= limits[dataset]) continue;
        double behind = weights[dataset] * place - taken[dataset];
        if (behind > most) most = behind, best = dataset;
    }
    return best;
}

PyDoc_STRVAR(blend_doc,
             "blend(weights, limits, taken, out_datasets, out_samples)\n\n"
             "For each of n places the dataset that is furthest behind its share of them, int16 (n,), and which of its\n"
             "samples comes there, int64 (n,). weights, limits and taken, in which samples are counted: float64 (D,).");

static PyObject *blend(PyObject *self, PyObject *args) {
    Py_buffer weights, limits, taken, out_datasets, out_samples;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*w*w*w*", &weights, &limits, &taken, &out_datasets, &out_samples)) return NULL;
    Py_ssize_t datasets = weights.len / 8, places = out_samples.len / 8;
    int sound = fits(&weights, 8, datasets) && fits(&limits, 8, datasets) && fits(&taken, 8, datasets) &&
                datasets > 0 && datasets <= INT16_MAX && fits(&out_samples, 8, places) && fits(&out_datasets, 2, places);
    if (sound) {
        double *counts = taken.buf;
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t place = 0; place < places; place++) {
            Py_ssize_t chosen = furthest_behind(weights.buf, limits.buf, counts, datasets, place ? (double)place : 1.0);
            ((int16_t *)out_datasets.buf)[place] = (int16_t)chosen;
            ((int64_t *)out_samples.buf)[place] = (int64_t)counts[chosen];
            counts[chosen] += 1.0;
        }
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&weights), PyBuffer_Release(&limits), PyBuffer_Release(&taken);
    PyBuffer_Release(&out_datasets), PyBuffer_Release(&out_samples);
    if (!sound) {
        PyErr_SetString(PyExc_ValueError, "blend: the arguments do not fit each other");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {{"unpack_rows", unpack_rows, METH_VARARGS, unpack_rows_doc},
                                  {"boundaries", boundaries, METH_VARARGS, boundaries_doc},
                                  {"shuffle", shuffle, METH_VARARGS, shuffle_doc},
                                  {"blend", blend, METH_VARARGS, blend_doc},
                                  {NULL, NULL, 0, NULL}};

/* One more with every change of what a function takes or gives: native.py wants the number that it was written for. */
enum { CONTRACT = 1 };

static int prepare(PyObject *module) {
    fill_tables();
    return PyModule_AddIntConstant(module, "CONTRACT", CONTRACT);
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, prepare}, {0, NULL}};

static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", NULL, 0, functions, slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
