// How a kernel's plain function calls the one compiled for the target in use: after HWY_EXPORT(F),
// NIBBLE_DISPATCH(F)(arguments).
#ifndef NIBBLE_KERNELS_DISPATCH_H_
#define NIBBLE_KERNELS_DISPATCH_H_

#include "hwy/highway.h"
#include "nibble/target.h"

#define NIBBLE_DISPATCH(function) (::nibble::ChooseTarget(), HWY_DYNAMIC_DISPATCH(function))

#endif  // NIBBLE_KERNELS_DISPATCH_H_
