internal import PTX

/// Writes a warp's rows of O and of the log-sum-exp: O goes through shared memory, so that each lane stores 16 bytes and
/// neighbouring lanes store a row's neighbouring chunks.
struct Epilogue {
  let k: KernelBuilder
  let inputs: Matrix.Inputs
  let tile: SharedTile
  /// Where the tile is, and the warp's first row in it (of all its columns).
  var place: Register<U32>
  let firstRow: Register<U32>
  let lane: Register<U32>
  let rows: PackedQueries
  /// The chunks of a row that exist, where the tile is a part of O; nil where it is all of it.
  var chunkCount: Register<S32>?

  /// Stages the output and stores it; `output` is the address of the batch's and group's first row.
  func store(_ output: Accumulators, to base: Register<U64>, _ strides: ForwardParameters.Strides) {
    k.comment("epilogue: O through shared memory, 16 bytes a lane")
    stage(output)
    k.warpBarrier()
    let warpRows = output.rowTiles * 16
    for width in tile.widths {
      let (line, chunk) = (lane / width, lane % width)
      let pattern = SharedTile.pattern(ofRow: line, width: width)
      let source = place + ((firstRow + line) * (width * 16) + ((chunk ^ pattern) * 16))
      let rowsPerPass = 32 / width
      for pass in 0..<warpRows / rowsPerPass {
        let row = rows.firstRow + firstRow + line + pass * rowsPerPass
        k.if(row .< rows.count) {
          let destination = base + rows.distance(ofRow: row, strides) + k.wide(chunk * 16)
          // A pass may end within the pattern's period: four rows of a wide panel are half of it.
          let shift = SharedTile.pattern(ofRow: pass * rowsPerPass, width: width) * 16
          let from = shift == 0 ? source : source ^ shift
          for panel in tile.panels where panel.width == width {
            func move() {
              let values = k.load(
                U32.self, count: 4, shared: from, offset: panel.offset + pass * rowsPerPass * panel.rowBytes)
              k.store(values, global: destination, offset: panel.firstChunk * 16)
            }
            if let chunkCount {
              k.if((chunk + panel.firstChunk).reinterpreted(as: S32.self) .< chunkCount, move)
            } else if (panel.firstChunk + width) * 8 > tile.columns {
              k.if(chunk .< max(0, tile.columns / 8 - panel.firstChunk), move)
            } else {
              move()
            }
          }
        }
      }
    }
  }

  private func stage(_ output: Accumulators) {
    let (group, pair) = (lane / 4, lane % 4)
    for width in tile.widths {
      let pattern = SharedTile.pattern(ofRow: group, width: width)
      let base = place + ((firstRow + group) * (width * 16) + (pattern * 16 + pair * 4))
      for panel in tile.panels where panel.width == width {
        for chunk in panel.firstChunk..<min(panel.firstChunk + width, output.columnTiles) {
          let flip = (chunk - panel.firstChunk) * 16
          let address = flip == 0 ? base : base ^ flip
          for rowTile in 0..<output.rowTiles {
            let elements = output[rowTile, chunk]
            for half in 0..<2 {
              k.store(
                inputs.pack(k, elements[2 * half], elements[2 * half + 1]), shared: address,
                offset: panel.offset + (rowTile * 16 + half * 8) * panel.rowBytes)
            }
          }
        }
      }
    }
  }

  /// Stores the log-sum-exps of the lane's rows, one lane of four for each row; `base` is 0 where nobody wants them.
  /// They are `[B, H_q, N_q]`: `firstHead` counts the heads before the group, over all batches.
  func store(
    logSumExps values: [Register<F32>], ownRows: [Register<U32>], to base: Register<U64>, firstHead: Register<U32>,
    queries: Register<U32>, groupSize: Int
  ) {
    k.if((base .!= 0) & ((lane % 4) .== 0)) {
      for (value, row) in zip(values, ownRows) {
        k.if(row .< rows.count) {
          let query = rows.query(ofRow: row)
          let head = groupSize == 1 ? firstHead : firstHead + (row - query * groupSize)
          k.store(value, global: base + (k.multiplyWide(head, queries) + k.wide(query)) * 4)
        }
      }
    }
  }
}
