internal import PTX

/// Where a sequence's rows lie among all that are packed, from a list of starts in the GPU's memory: within what there
/// is, whatever the list says.
struct PackedRange {
  /// The row of its first.
  let first: Register<U32>
  /// How many there are.
  let count: Register<S32>

  /// - Parameters:
  ///   - starts: where each sequence begins, and the end of the last.
  ///   - place: the bytes to the sequence's word.
  ///   - total: rows of all sequences.
  init(_ k: KernelBuilder, _ starts: Register<U64>, at place: Register<U64>, total: Register<U32>) {
    let own = starts + place
    // Numbers below 0 are beyond the end too, without a sign.
    first = k.minimum(k.load(U32.self, global: own), total)
    let end = k.minimum(k.load(U32.self, global: own, offset: 4), total)
    count = k.maximum((end - first).reinterpreted(as: S32.self), k.constant(0, S32.self))
  }

  /// The same where the list is there; otherwise so many rows from the first on.
  init(
    _ k: KernelBuilder, _ starts: Register<U64>, at place: @autoclosure () -> Register<U64>, total: Register<U32>,
    else others: Register<S32>
  ) {
    let (count, first) = (k.variable(others), k.variable(k.constant(0, U32.self)))
    k.if(starts .!= 0) {
      let range = PackedRange(k, starts, at: place(), total: total)
      k.set(first, to: range.first)
      k.set(count, to: range.count)
    }
    (self.first, self.count) = (first, count)
  }
}

extension KernelBuilder {
  /// A number of rows from a list of the caller: none below 0, no more than there are.
  func held(_ count: Register<S32>, to limit: Register<S32>) -> Register<S32> {
    maximum(minimum(count, limit), constant(0, S32.self))
  }

  /// A sequence's word of a list; another number where there is no list.
  func word<T: IntegerType>(
    of list: Register<U64>, at place: @autoclosure () -> Register<U64>, else other: Register<T>
  ) -> Register<T> {
    let result = variable(other)
    `if`(list .!= 0) { set(result, to: load(T.self, global: list + place())) }
    return result
  }
}
