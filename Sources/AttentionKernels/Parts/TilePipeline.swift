internal import PTX

/// The ring of K and V tiles in shared memory: while one stage is read, the copies of the next ones are under way.
struct TilePipeline {
  private let k: KernelBuilder
  private let stages: Int
  private let tileKeys: Int
  private let memory: SharedMemoryPlan
  private let keyLoader, valueLoader: TileLoader
  private let keyReader, valueReader: TileReader
  /// The first stage, and the end of the last.
  private let first, end: Register<U32>
  private let readSlot, writeSlot: Register<U32>
  /// N_k, and where the last tile ends that the block needs.
  private let keyCount, needed: Register<S32>
  /// The first key of the stage that is filled next.
  private let next: Register<S32>

  init(
    _ k: KernelBuilder, _ specialization: ForwardSpecialization, _ memory: SharedMemoryPlan, shared: Register<U32>,
    thread: Register<U32>, lane: Register<U32>, keys: (base: Register<U64>, rowStride: Register<U64>),
    values: (base: Register<U64>, rowStride: Register<U64>), keyCount: Register<S32>, firstTile: Register<S32>,
    endTile: Register<S32>
  ) {
    let tiling = specialization.tiling
    (self.k, stages, tileKeys, self.memory) = (k, tiling.stages, tiling.tileKeys, memory)
    let start = (firstTile * tiling.tileKeys).named("first_key")
    func loader(_ tile: SharedTile, _ tensor: (base: Register<U64>, rowStride: Register<U64>)) -> TileLoader {
      TileLoader(
        k, tile, source: tensor.base + k.wide(start) * tensor.rowStride, rowStride: tensor.rowStride,
        thread: thread,
        threads: tiling.threads)
    }
    (keyLoader, valueLoader) = (loader(memory.keys, keys), loader(memory.values, values))
    keyReader = TileReader(k, memory.keys, .chunksFirst, lane: lane)
    valueReader = TileReader(k, memory.values, .rowsFirst, lane: lane)
    first = (shared + memory.stagesOffset).named("first_stage")
    end = first + stages * memory.stageByteCount
    readSlot = k.variable(first).named("read_slot")
    writeSlot = k.variable(first + (stages - 1) * memory.stageByteCount).named("write_slot")
    self.keyCount = keyCount
    needed = endTile * tiling.tileKeys
    next = k.variable(start).named("next_key")
  }

  /// K of the stage that is read.
  var keys: TileReader { keyReader.at(readSlot) }
  /// V of the stage that is read.
  var values: TileReader { valueReader.at(readSlot + memory.valuesOffset) }
  /// Starts the copies of the first stages, all but the last, a group of copies each; what was started before belongs to
  /// the first.
  func issueFirstStages() {
    for stage in 0..<stages - 1 {
      for copy in copies(to: first + stage * memory.stageByteCount) { copy() }
    }
  }

  /// Waits until the stage that is read next has arrived, for all threads; all have then read the stage before.
  func wait() {
    k.waitForCopies(pending: stages - 2)
    k.barrier()
  }

  /// The copies into the stage that was read last, to be emitted between other instructions: a group of copies, of
  /// nothing beyond the last tile.
  func nextCopies() -> [() -> Void] { copies(to: writeSlot) }

  private func copies(to slot: Register<U32>) -> [() -> Void] {
    let (rowsLeft, isWanted) = (keyCount - next, next .< needed)
    let keys = keyLoader.copies(to: slot, rowsLeft: rowsLeft, isWanted: isWanted)
    let values = valueLoader.copies(to: slot + memory.valuesOffset, rowsLeft: rowsLeft, isWanted: isWanted)
    return keys + values + [
      {
        k.commitCopies()
        k.set(next, to: next + tileKeys)
      }
    ]
  }

  /// Goes on to the next stage.
  func advance() {
    for slot in [readSlot, writeSlot] {
      let following = slot + memory.stageByteCount
      k.set(slot, to: k.select(following .== end, first, following))
    }
  }
}
