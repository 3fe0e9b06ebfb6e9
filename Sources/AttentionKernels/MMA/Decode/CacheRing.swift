internal import PTX

/// The ring of K and V of one group of warps: it copies and reads keys of its own, step after step, and waits for
/// nobody else.
///
/// A step's keys are rows of the cache, found by number or by the page table. Pages are looked up one step ahead.
final class CacheRing {
  private let k: KernelBuilder
  private let s: DecodeSpecialization
  private let memory: DecodeMemoryPlan
  private let parameters: DecodeParameters
  /// The thread within its group, and the group.
  private let thread, group: Register<U32>
  private let keyReader, valueReader: TileReader
  /// The group's first stage, and the end of its last.
  private let first, end: Register<U32>
  private let readSlot, writeSlot: Register<U32>
  /// Row 0 of the sequence in the cache, or of page 0, for the unit's head.
  private let keyBase, valueBase: Register<U64>
  /// The page table of the sequence.
  private let pages: Register<U64>
  /// N_k of the sequence, and the row of its first key.
  private let length, padding: Register<S32>
  /// The sequence of the cache, where there are no pages: none where it is beyond the last.
  private let place: Register<U32>?
  /// The first key of the step that is copied next, and where the block's piece of work ends.
  private let next, needed: Register<S32>
  /// Keys that are left out; nil where there are none.
  private let gap: (first: Register<S32>, end: Register<S32>)?
  /// The page of the next step's keys, where one holds all of them.
  private let page: Register<U32>
  /// Where a step's keys are on several pages: the page of the next step's key of the lane's number, and its row there; of a step of
  /// more than 32 keys a second pair.
  private let ofLanes: [(page: Register<U32>, row: Register<U32>)]

  /// - Parameters:
  ///   - groupThread: the thread within its group.
  ///   - tiles: the piece of work, in tiles of the sequence's keys.
  init(
    _ k: KernelBuilder, _ s: DecodeSpecialization, _ memory: DecodeMemoryPlan, _ parameters: DecodeParameters,
    _ warp: WarpPlace, groupThread: Register<U32>, unit: WorkShare.Unit,
    tiles: KeyTiles
  ) {
    (self.k, self.s, self.memory, self.parameters) = (k, s, memory, parameters)
    (thread, group) = (groupThread, warp.sharer)
    keyReader = TileReader(k, memory.keys, .chunksFirst, lane: warp.lane)
    valueReader = TileReader(k, memory.values, .rowsFirst, lane: warp.lane)
    first = (warp.shared + memory.ringOffset + group * memory.groupByteCount).named("first_stage")
    end = first + memory.groupByteCount
    readSlot = k.variable(first).named("read_slot")
    writeSlot = k.variable(first + (s.tiling.stages - 1) * memory.stageByteCount).named("write_slot")
    let p = parameters
    let table = SequenceTable(k, s, p)
    padding = table.firstRow(of: unit.sequence)
    place = s.paging == .none ? table.cachePlace(of: unit.sequence) : nil
    let firstKey = table.firstKey(of: unit.sequence)
    func base(_ pointer: Register<U64>, _ strides: StrideParameters, _ place: Register<U32>?) -> Register<U64> {
      let ofHead = pointer + k.wide(unit.head) * strides.head
      let ofSequence = place.map { ofHead + k.wide($0) * strides.batch } ?? ofHead
      return firstKey.map { ofSequence + k.wide($0) * strides.row } ?? ofSequence
    }
    (keyBase, valueBase) = (base(p.keyBase, p.keyStrides, place), base(p.valueBase, p.valueStrides, place))
    pages = table.pages(of: unit.sequence)
    length = unit.length
    let start = (unit.firstKeyTile + tiles.first) * s.tiling.tileKeys
    next = k.variable(start + group.reinterpreted(as: S32.self) * s.tiling.keysPerStep).named("next_key")
    let (end, size) = (unit.firstKeyTile + tiles.end, s.tiling.tileKeys)
    needed = (tiles.gap.map { end + $0.width } ?? end) * size
    gap = tiles.gap.map { gap in
      let first = (unit.firstKeyTile + gap.at) * size
      return (first, first + gap.width * size)
    }
    page = k.variable(k.constant(0, U32.self)).named("page")
    ofLanes = (0..<(s.paging == .anyPage ? (s.tiling.keysPerStep + 31) / 32 : 0)).map { _ in
      (
        k.variable(k.constant(0, U32.self)).named("page_of_lane"),
        k.variable(k.constant(0, U32.self)).named("row_of_lane")
      )
    }
    lookUp()
  }

  /// Starts the copies of the first steps, a group of copies each; the first group also has those of `beside`.
  func start(beside: () -> Void) {
    for stage in 0..<s.tiling.stages - 1 {
      copy(to: first + stage * memory.stageByteCount) { if stage == 0 { beside() } }
    }
  }

  /// Waits for the step that is read next; all of the group have then read the one before.
  func wait() {
    k.waitForCopies(pending: s.tiling.stages - 2)
    synchronize()
  }

  /// Fills the place of the step before.
  func refill() { copy(to: writeSlot) }

  /// K of the step that is read.
  var keys: TileReader { keyReader.at(readSlot) }
  /// V of the step that is read.
  var values: TileReader { valueReader.at(readSlot + memory.keys.byteCount) }

  /// Goes on to the next step.
  func advance() {
    for slot in [readSlot, writeSlot] {
      let following = slot + memory.stageByteCount
      k.set(slot, to: k.select(following .== end, first, following))
    }
  }

  /// Waits for the other warps of the group.
  private func synchronize() {
    if s.tiling.rowWarps == 1 { k.warpBarrier() } else { k.barrier(id: group + 1, threads: s.tiling.groupThreads) }
  }

  /// Loads the pages of the step at `next`: the one that holds it, or each key's by a lane.
  private func lookUp() {
    guard s.paging == .wholeSteps || s.paging == .anyPage else { return }
    let end = k.minimum(length, needed)
    func load(_ number: Register<U32>, to page: Register<U32>) {
      k.set(page, to: k.load(U32.self, global: pages + k.multiplyWide(number, 4)))
    }
    if s.paging == .wholeSteps {
      k.if(next .< end) {
        load(k.quotient((next + padding).reinterpreted(as: U32.self), by: parameters.pageSize), to: page)
      }
    }
    for (number, own) in ofLanes.enumerated() {
      let lane = (thread % 32).reinterpreted(as: S32.self) + 32 * number
      let key = next + lane
      let isOwn = 32 * (number + 1) > s.tiling.keysPerStep ? (lane .< s.tiling.keysPerStep) & (key .< end) : key .< end
      // Only of keys that there are: what a caller says of padding may lead beyond what can be divided.
      k.if(isOwn) {
        let (page, row) = k.division((key + padding).reinterpreted(as: U32.self), by: parameters.pageSize)
        k.set(own.row, to: row)
        load(page, to: own.page)
      }
    }
  }

  /// The page of a row of the step at `next`, and its row there, from the lane that looked it up.
  ///
  /// - Parameter pass: the number of the pass that the row belongs to, of so many rows.
  private func found(_ row: Register<U32>, pass: Int, rowsPerPass: Int) -> (page: Register<U32>, row: Register<U32>) {
    func from(_ number: Int) -> (page: Register<U32>, row: Register<U32>) {
      (k.shuffle(ofLanes[number].page, lane: row % 32), k.shuffle(ofLanes[number].row, lane: row % 32))
    }
    if 32 % rowsPerPass == 0 { return from(min(pass * rowsPerPass / 32, ofLanes.count - 1)) }
    return ofLanes.indices.dropFirst().reduce(from(0)) { before, number in
      let (isThere, own) = (row .>= 32 * number, from(number))
      return (k.select(isThere, own.page, before.page), k.select(isThere, own.row, before.row))
    }
  }

  /// Starts the copies of the step at `next`, and with them those of `beside`, and goes on to the step after it.
  private func copy(to slot: Register<U32>, beside: () -> Void = {}) {
    let isWanted = next .< needed
    let rowsLeft = presentRows - next
    for (tile, offset, base, strides) in [
      (memory.keys, 0, keyBase, parameters.keyStrides),
      (memory.values, memory.keys.byteCount, valueBase, parameters.valueStrides),
    ] {
      for width in tile.widths {
        let (line, chunk) = (thread / width, thread % width)
        let rowsPerPass = s.tiling.groupThreads / width
        let destination = slot + (tile.place(row: line, chunk: chunk, width: width) + offset)
        // Rows of a step lie one after the other but where pages are of any size.
        let own = s.paging == .anyPage ? nil : address(ofRow: line, base, strides) + k.wide(chunk * 16)
        for pass in 0..<(tile.rows + rowsPerPass - 1) / rowsPerPass {
          let row = line + pass * rowsPerPass
          var exists = row.reinterpreted(as: S32.self) .< rowsLeft
          let isOwn = (pass + 1) * rowsPerPass > tile.rows ? isWanted & (row .< tile.rows) : isWanted
          let source: Register<U64>
          if let own {
            source = pass == 0 ? own : own + strides.row * (pass * rowsPerPass)
          } else {
            let found = found(row, pass: pass, rowsPerPass: rowsPerPass)
            exists = exists & (found.page .< parameters.cachePlaces)
            source = address(ofRow: found.row, onPage: found.page, base, strides) + k.wide(chunk * 16)
          }
          // Few threads take less rows at a time than the pattern has.
          let to = tile.turned(destination, asRow: pass * rowsPerPass, width: width)
          for panel in tile.panels where panel.width == width {
            let count = max(0, tile.columns / 8 - panel.firstChunk)
            let isReal = count < width ? exists & (chunk .< count) : exists
            let bytes = k.select(isReal, 16, 0, U32.self)
            k.when(isOwn) {
              k.copyAsync(
                to: to, offset: panel.offset + pass * rowsPerPass * panel.rowBytes, from: source,
                offset: panel.firstChunk * 16, sourceBytes: bytes)
            }
          }
        }
      }
    }
    beside()
    k.commitCopies()
    var following = next + s.tiling.tileKeys
    if let gap {
      let isInGap = (following .>= gap.first) & (following .< gap.end)
      following = k.select(isInGap, following + (gap.end - gap.first), following)
    }
    k.set(next, to: following)
    lookUp()
  }

  /// The rows that K and V have there: none in a sequence or on a page that is not in the cache, whatever a caller
  /// says, so that zeros stand for them.
  private var presentRows: Register<S32> {
    guard let number = s.paging == .wholeSteps ? page : place else { return length }
    return k.select(number .< parameters.cachePlaces, length, k.constant(0, S32.self))
  }

  /// Where row `row` of the step at `next` is, where its rows lie one after the other.
  private func address(
    ofRow row: Register<U32>, _ base: Register<U64>, _ strides: StrideParameters
  ) -> Register<U64> {
    let place = (next + padding).reinterpreted(as: U32.self) + row
    if s.paging != .wholeSteps { return base + k.wide(place) * strides.row }
    return address(ofRow: k.division(place, by: parameters.pageSize).remainder, onPage: page, base, strides)
  }

  /// Where a row of a page is.
  private func address(
    ofRow row: Register<U32>, onPage page: Register<U32>, _ base: Register<U64>, _ strides: StrideParameters
  ) -> Register<U64> {
    base + k.wide(page) * strides.batch + k.wide(row) * strides.row
  }
}
