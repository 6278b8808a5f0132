// The C interface of the CPU kernels of the Langevin step: cuts the work into units and chooses the instruction set.
#include <math.h>
#include <string.h>

#include <initializer_list>

#include "kernels/blocksparse/blocksparse.h"
#include "kernels/langevin/cpu_dispatch.h"
#include "kernels/langevin/langevin.h"

namespace tfgen {
namespace {

LangevinKernels choose() {
#if TFGEN_X86_KERNELS
  const char* isa = tfgen_blocksparse_cpu_isa();
  if (strcmp(isa, "avx2") == 0) return avx2_langevin();
  if (strcmp(isa, "portable") != 0) return avx512_langevin();
#endif
  return portable_langevin();
}

const LangevinKernels& kernels() {
  static const LangevinKernels chosen = choose();
  return chosen;
}

// The first sum of the forward pass is about g and the last about d, as d depends on |g|; in the backward pass it is
// the other way round.
enum { kFirstPieces = 0, kFirstRows = 1, kLastPieces = 2, kLastRows = 3, kElements = 4 };

bool about_gradient(int32_t phase, bool backward) { return (phase <= kFirstRows) != backward; }

// Units first .. last - 1 of a sum, each a piece: sum(from, to) of its elements.
template <class Sum>
void add_pieces(const LangevinRows& rows, double* pieces, int64_t first, int64_t last, Sum sum) {
  for (int64_t unit = first; unit < last; ++unit) {
    const int64_t row = unit / rows.pieces, start = unit % rows.pieces * kLangevinPiece;
    const int64_t end = start + kLangevinPiece < rows.size ? start + kLangevinPiece : rows.size;
    pieces[unit] = sum(row * rows.size + start, row * rows.size + end);
  }
}

double row_sum(const LangevinRows& rows, const double* pieces, int64_t row) {
  double total = 0;
  for (int64_t piece = 0; piece < rows.pieces; ++piece) total += pieces[row * rows.pieces + piece];
  return total;
}

}  // namespace
}  // namespace tfgen

int64_t tfgen_langevin_units(const TfgenLangevinStep* step, int32_t phase, int32_t backward) {
  using namespace tfgen;
  if (phase == kElements) return tfgen_langevin_element_units(step->samples * step->size);
  const bool gradient = about_gradient(phase, backward);
  if (!is_summed(*step, gradient)) return 0;
  const LangevinRows rows = rows_of(*step, gradient);
  return phase == kFirstPieces || phase == kLastPieces ? rows.count * rows.pieces : rows.count;
}

int64_t tfgen_langevin_scratch(const TfgenLangevinStep* step) {
  using namespace tfgen;
  int64_t pieces = 0;
  for (const bool gradient : {true, false}) {
    if (!is_summed(*step, gradient)) continue;
    const LangevinRows rows = rows_of(*step, gradient);
    if (rows.count * rows.pieces > pieces) pieces = rows.count * rows.pieces;
  }
  return 2 * step->samples + 1 + pieces;
}

void tfgen_langevin_forward_cpu(const TfgenLangevinForward* args, int32_t phase, int64_t first, int64_t last) {
  using namespace tfgen;
  const TfgenLangevinStep& step = args->step;
  if (phase == kElements) {
    for (int64_t unit = first; unit < last; ++unit) kernels().forward(*args, unit);
    return;
  }
  const bool gradient = about_gradient(phase, false);
  const LangevinRows rows = rows_of(step, gradient);
  double* pieces = sums_of_pieces(step, args->scratch);
  if (phase == kFirstPieces || phase == kLastPieces) {
    const auto square = gradient ? kernels().gradient_square : kernels().displacement_square;
    add_pieces(rows, pieces, first, last, [=, &step](int64_t from, int64_t to) { return square(step, from, to); });
    return;
  }
  float* norms = gradient ? step.gradient_norms : step.displacement_norms;
  for (int64_t row = first; row < last; ++row) norms[row] = static_cast<float>(sqrt(row_sum(rows, pieces, row)));
}

void tfgen_langevin_backward_cpu(const TfgenLangevinBackward* args, int32_t phase, int64_t first, int64_t last) {
  using namespace tfgen;
  const TfgenLangevinStep& step = args->step;
  if (phase == kElements) {
    for (int64_t unit = first; unit < last; ++unit) kernels().backward(*args, unit);
    return;
  }
  const bool gradient = about_gradient(phase, true);
  const LangevinRows rows = rows_of(step, gradient);
  double* pieces = sums_of_pieces(step, args->scratch);
  if (phase == kFirstPieces || phase == kLastPieces) {
    const auto product = gradient ? kernels().gradient_product : kernels().displacement_product;
    add_pieces(rows, pieces, first, last, [=](int64_t from, int64_t to) { return product(*args, from, to); });
    return;
  }
  double* products = gradient ? gradient_products(step, args->scratch) : displacement_products(step, args->scratch);
  for (int64_t row = first; row < last; ++row) products[row] = row_sum(rows, pieces, row);
}

int64_t tfgen_langevin_element_units(int64_t elements) {
  return (elements + tfgen::kLangevinUnit - 1) / tfgen::kLangevinUnit;
}

void tfgen_langevin_noise_cpu(const TfgenLangevinNoise* args, int64_t first, int64_t last) {
  for (int64_t unit = first; unit < last; ++unit) tfgen::kernels().noise(*args, unit);
}

void tfgen_random_cpu(const TfgenRandomDraw* args, int64_t first, int64_t last) {
  for (int64_t unit = first; unit < last; ++unit) tfgen::kernels().random(*args, unit);
}
