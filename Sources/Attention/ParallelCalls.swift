/// Calls a function with its argument on up to so many threads at once, the caller's among them, and returns when all have returned; the last
/// parameter is 0. `GOMP_parallel` of GNU's OpenMP is one.
public typealias ParallelCalls =
  @convention(c) (
    (@convention(c) (UnsafeMutableRawPointer?) -> Void)?, UnsafeMutableRawPointer?, UInt32, UInt32
  ) -> Void
