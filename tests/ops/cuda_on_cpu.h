/* Enough of CUDA to run kernels without barriers on the CPU, one thread after the other. */
#include <math.h>
#include <stdint.h>
#include <string.h>
#define __device__
#define __global__ static
#define __shared__ static
#define __launch_bounds__(x)
#define __expf expf
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
static dim3 blockIdx, threadIdx, gridDim;
typedef void *cudaStream_t;
typedef int cudaError_t;
static int cudaGetLastError() { return 0; }
static int cudaSetDevice(int) { return 0; }
static const char *cudaGetErrorString(int) { return ""; }
struct __nv_bfloat16 {
    uint16_t bits;
};
struct __half {
    _Float16 value;
};
static float __bfloat162float(__nv_bfloat16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
static __nv_bfloat16 __float2bfloat16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return __nv_bfloat16{(uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
static float __half2float(__half x) { return (float)x.value; }
static __half __float2half(float f) { return __half{(_Float16)f}; }
template <typename Kernel, typename... Arguments>
static void launch(dim3 grid, unsigned threads, Kernel kernel, Arguments... arguments) {
    gridDim = grid;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++)
                for (unsigned t = 0; t < threads; t++) {
                    blockIdx = dim3(x, y, z), threadIdx = dim3(t);
                    kernel(arguments...);
                }
}
