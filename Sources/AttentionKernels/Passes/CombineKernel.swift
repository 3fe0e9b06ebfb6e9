package import PTX

/// The second launch of a decode call whose units have many parts: a block for each row, or for some rows of a unit where
/// there are many.
///
///     the rows' unit, and its parts: nothing to do where there is one
///     where it may begin early: wait for the first launch, also where nothing is to do, or what follows would begin before its end
///     each thread: 4 columns of a row, over every n-th part
///     O and log-sum-exp of each row, over the n through shared memory
package struct CombineKernel: KernelSource {
  /// Threads of a block.
  package static let threads = 256
  /// What the decode kernel was made for.
  package let specialization: DecodeSpecialization
  /// Rows of a block, as `CombineGrid` has them.
  package let rows: Int

  /// The kernel that follows a decode kernel.
  package init(_ specialization: DecodeSpecialization, rows: Int) {
    (self.specialization, self.rows) = (specialization, rows)
  }

  /// The dynamic shared memory that a block keeps its sums in, for so many columns of O.
  static func byteCount(columns: Int, rows: Int) -> Int {
    let perPart = columns / 4 * rows
    let parts = threads / perPart
    return parts == 1 ? 0 : parts * perPart * 24
  }

  /// The entry point's name.
  package var name: String { "combine\(rows == 1 ? "" : "\(rows)")_" + specialization.name }

  /// The kernel, with the parameters of `DecodeParameters`.
  package func kernel() throws(KernelError) -> Kernel {
    let s = specialization
    // ptxas, which would save registers for more blocks, else loads part after part.
    return try Kernel.build(
      name, threadsPerBlock: Self.threads, blocksPerMultiprocessor: CombineGrid.blocksOfMultiprocessor
    ) { k in
      let p = DecodeParameters(ParameterList(k), s.parameterParts)
      let (thread, lane) = (k.special(.threadX), k.special(.lane))
      let chunks = s.outputChunks
      let together = Self.threads / (chunks * rows)
      let perPart = chunks * rows
      let buffer = k.dynamicShared(alignment: 16)
      // Rows of a key/value head, whatever blocks of rows they were computed in.
      let count = s.groupSize == 1 ? p.queries : p.queries * s.groupSize
      let block = k.special(.blockX)
      let perHead = rows == 1 ? count : (count + (rows - 1)) / rows
      let place = block / perHead
      let first = (block - place * perHead) * rows
      let sequence = place / p.keyValueHeads
      let share = WorkShare(k, s, p, lane: lane)
      let unit = share.unit(
        sequence: sequence.reinterpreted(as: S32.self), head: place - sequence * p.keyValueHeads,
        rowBlock: first / s.tiling.rows)
      let parts = share.parts(of: unit)
      let combine = SplitCombine(k, s, p, parts: parts)
      let unitRows = UnitRows(k, s, p, unit, firstRow: k.constant(0, U32.self))
      func waitForParts() { if s.combination == .dependentLaunch { k.waitForPrerequisites() } }
      let hasParts = parts.first .< parts.last
      // Asked before the wait, so that ptxas does not leave the answer for after it.
      k.if(s.hasPackedQueries ? hasParts & (first .< unitRows.packed.count) : hasParts) {
        waitForParts()
        let (part, item) = (thread / perPart, thread % perPart)
        let (own, chunk) = rows == 1 ? (first, item) : (first + item / chunks, item % chunks)
        // Rows behind the last have no parts.
        let present = rows == 1 ? own : k.minimum(own, unitRows.packed.count - 1)
        func sums() -> PartialSum {
          combine.sums(
            places: [(row: present % s.tiling.rows, chunk: chunk)], first: part.reinterpreted(as: S32.self),
            step: together)[0]
        }
        var isOne = part .== 0
        if rows > 1 { isOne = isOne & (own .< unitRows.packed.count) }
        if together == 1 { return k.if(isOne) { combine.store(sums(), unitRows, row: own, chunk: chunk) } }
        let place = buffer + thread * 16
        let numbers = buffer + together * perPart * 16 + thread * 8
        k.if(part .< together) {
          let sum = sums()
          k.store(sum.values, shared: place)
          k.store([sum.maximum, sum.sum], shared: numbers)
        }
        k.barrier()
        k.if(isOne) {
          let others = (0..<together).map { i in
            let pair = k.load(F32.self, count: 2, shared: numbers, offset: i * perPart * 8)
            let values = k.load(F32.self, count: 4, shared: place, offset: i * perPart * 16)
            return (maximum: pair[0], sum: pair[1], values: values)
          }
          let sum = PartialSum(k)
          sum.add(others)
          combine.store(sum, unitRows, row: own, chunk: chunk)
        }
      } else: {
        waitForParts()
      }
    }
  }
}
