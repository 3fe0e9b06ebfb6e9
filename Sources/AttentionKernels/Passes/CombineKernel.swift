package import PTX

/// The second launch of a decode call whose units have many parts: a block for each row.
///
///     the row's unit, and its parts
///     where it may begin early: wait for the first launch, also where nothing is to do, or what follows would begin before its end
///     nothing to do where there is one part
///     each thread: 4 columns, over every n-th part
///     O and log-sum-exp of the row, over the n through shared memory
package struct CombineKernel: KernelSource {
  /// Threads of a block.
  package static let threads = 256
  /// What the decode kernel was made for.
  package let specialization: DecodeSpecialization

  /// The kernel that follows a decode kernel.
  package init(_ specialization: DecodeSpecialization) { self.specialization = specialization }

  /// The entry point's name.
  package var name: String { "combine_" + specialization.name }

  /// The kernel, with the parameters of `DecodeParameters`.
  package func kernel() throws(KernelError) -> Kernel {
    let s = specialization
    return try Kernel.build(name, threadsPerBlock: Self.threads) { k in
      let p = DecodeParameters(ParameterList(k))
      let (thread, lane) = (k.special(.threadX), k.special(.lane))
      let combine = SplitCombine(k, s, p)
      let chunks = combine.chunks
      let parts = Self.threads / chunks
      let buffer = k.shared("sums", byteCount: parts * chunks * 24)
      // Rows of a key/value head, whatever blocks of rows they were computed in.
      let count = s.groupSize == 1 ? p.queries : p.queries * s.groupSize
      let block = k.special(.blockX)
      let place = block / count
      let own = block - place * count
      let sequence = place / p.keyValueHeads
      let share = WorkShare(k, s, p, lane: lane)
      let unit = share.unit(
        sequence: sequence.reinterpreted(as: S32.self), head: place - sequence * p.keyValueHeads,
        rowBlock: own / s.tiling.rows)
      let rows = UnitRows(k, s, p, unit, firstRow: k.constant(0, U32.self))
      if s.combination == .dependentLaunch { k.waitForPrerequisites() }
      let hasParts = unit.parts.first .< unit.parts.last
      k.if(s.hasPackedQueries ? hasParts & (own .< rows.packed.count) : hasParts) {
        let (part, chunk) = (thread / chunks, thread % chunks)
        let place = buffer + thread * 16
        let numbers = buffer + parts * chunks * 16 + thread * 8
        k.if(part .< parts) {
          let sum = combine.sums(
            unit, places: [(row: own % s.tiling.rows, chunk: chunk)], first: part.reinterpreted(as: S32.self),
            step: parts)[0]
          k.store(sum.values, shared: place)
          k.store([sum.maximum, sum.sum], shared: numbers)
        }
        k.barrier()
        k.if(thread .< chunks) {
          let others = (0..<parts).map { i in
            let pair = k.load(F32.self, count: 2, shared: numbers, offset: i * chunks * 8)
            let values = k.load(F32.self, count: 4, shared: place, offset: i * chunks * 16)
            return (maximum: pair[0], sum: pair[1], values: values)
          }
          let sum = PartialSum(k)
          sum.add(others)
          combine.store(sum, rows, row: own, chunk: chunk)
        }
      }
    }
  }
}
