#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// The middle of the values; the larger of the two middle ones where their number is even.
package func median(_ values: [Double]) -> Double { values.sorted()[values.count / 2] }

/// The geometric mean of positive numbers.
package func geometricMean(_ values: [Double]) -> Double {
  exp(values.reduce(0) { $0 + log($1) } / Double(values.count))
}

/// Wall-clock seconds that `body` takes.
package func elapsedSeconds(_ body: () throws -> Void) rethrows -> Double {
  try ContinuousClock().measure(body) / .seconds(1)
}
