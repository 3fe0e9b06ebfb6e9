#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// The most memory this process has had in use so far, in bytes, as the operating system counts it.
///
/// From `/proc/self/status`, which counts from the start of the program; `getrusage` counts what its parent had in use
/// when it started the program, too. 0 where there is no such file.
func peakMemory() -> Int {
  guard let file = fopen("/proc/self/status", "r") else { return 0 }
  defer { fclose(file) }
  var line = [CChar](repeating: 0, count: 256)
  while fgets(&line, 256, file) != nil {
    let words = String(decoding: line.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
      .split { " \t\n".contains($0) }
    if words.first == "VmHWM:", words.count >= 2, let kilobytes = Int(words[1]) { return kilobytes * 1024 }
  }
  return 0
}
