// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// writeExt4 writes the tree into f as an ext4 file system and extends f to
// slotBytes with a hole. f must be empty. It returns how many bytes of f have
// content. Memory use does not depend on the size of files, only on their number.
func writeExt4(ctx context.Context, t *tree, layers []opener, f durable.File, slotBytes int64) (used int64, err error) {
	pr, pw := io.Pipe()
	produced := make(chan error, 1)
	go func() {
		err := flatten(ctx, t, layers, pw)
		pw.CloseWithError(err)
		produced <- err
	}()
	out := &sparseWriter{ctx: ctx, f: f}
	convErr := convert(pr, out, slotBytes)
	// The producer must not wait for a reader that has given up.
	pr.CloseWithError(errConversionEnded)
	flattenErr := <-produced

	switch {
	case ctx.Err() != nil:
		return 0, context.Cause(ctx)
	case out.err != nil:
		return 0, fmt.Errorf("write disk: %w", out.err)
	case flattenErr != nil && !errors.Is(flattenErr, errConversionEnded):
		return 0, flattenErr
	case convErr != nil:
		// The archive is ours, so what the writer refuses is in the image: a
		// name it cannot hold, more than the slot has room for, ...
		return 0, corrupt("lay out the disk: %w", convErr)
	}
	if err := f.Truncate(slotBytes); err != nil {
		return 0, fmt.Errorf("extend disk to %d bytes: %w", slotBytes, err)
	}
	if err := padInodeBitmaps(f); err != nil {
		return 0, fmt.Errorf("finish disk: %w", err)
	}
	return out.used, nil
}

var errConversionEnded = errors.New("conversion ended")

// convert calls the library, which panics on some inputs it cannot lay out.
func convert(r io.Reader, w io.ReadWriteSeeker, slotBytes int64) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("ext4 writer: %v", p)
		}
	}()
	return tar2ext4.ConvertTarToExt4(r, w, tar2ext4.MaximumDiskSize(slotBytes))
}

const blockBytes = 4096

// Where things are in ext4: kernel documentation, filesystems/ext4.
const (
	superblockAt    = 1024
	blocksCountAt   = 4  // in the superblock, as are the next two
	blocksPerGroup  = 32 // 32-bit little-endian numbers all
	inodesPerGroup  = 40
	descriptorBytes = 32
	inodeBitmapAt   = 4 // in a group's descriptor
)

// padInodeBitmaps marks the inodes that a group's bitmap has room for and the
// group does not have as used. The library leaves them free, which the kernel
// ignores and e2fsck reports as damage.
func padInodeBitmaps(f durable.File) error {
	readAt := func(at int64, p []byte) error {
		if _, err := f.Seek(at, io.SeekStart); err != nil {
			return err
		}
		_, err := io.ReadFull(f, p)
		return err
	}
	sb := make([]byte, 64)
	if err := readAt(superblockAt, sb); err != nil {
		return err
	}
	blocks, perGroup, inodes := binary.LittleEndian.Uint32(sb[blocksCountAt:]), binary.LittleEndian.Uint32(sb[blocksPerGroup:]), binary.LittleEndian.Uint32(sb[inodesPerGroup:])
	if perGroup == 0 || inodes%8 != 0 || inodes > 8*blockBytes {
		return fmt.Errorf("ext4 writer left %d inodes and %d blocks per group", inodes, perGroup)
	}
	bitmap, desc := make([]byte, blockBytes), make([]byte, descriptorBytes)
	for g := range (int64(blocks) + int64(perGroup) - 1) / int64(perGroup) {
		if err := readAt(blockBytes+g*descriptorBytes, desc); err != nil {
			return err
		}
		at := int64(binary.LittleEndian.Uint32(desc[inodeBitmapAt:])) * blockBytes
		if err := readAt(at, bitmap); err != nil {
			return err
		}
		for i := inodes / 8; i < blockBytes; i++ {
			bitmap[i] = 0xff
		}
		if _, err := f.Seek(at, io.SeekStart); err != nil {
			return err
		}
		if _, err := f.Write(bitmap); err != nil {
			return err
		}
	}
	return nil
}

// sparseWriter leaves holes where a fresh file would get blocks of zeros, so that
// the cache costs what images contain.
type sparseWriter struct {
	ctx  context.Context //nolint:containedctx // of the conversion that this writer is a part of
	f    durable.File
	pos  int64 // where the next byte goes
	real int64 // where f's own offset is
	end  int64 // everything behind is a hole
	used int64 // bytes written before end moved over them
	err  error // the first error of f
}

func (w *sparseWriter) Write(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		// Whole blocks of zeros in untouched ground are skipped ...
		skip := 0
		for w.pos >= w.end && w.pos%blockBytes == 0 && len(p)-done-skip >= blockBytes && isZero(p[done+skip:done+skip+blockBytes]) {
			skip += blockBytes
			w.pos += blockBytes
		}
		if done += skip; done == len(p) {
			break
		}
		// ... and what lies before the next such block is written at once.
		n := min(len(p)-done, int(blockBytes-w.pos%blockBytes))
		for n < len(p)-done && (len(p)-done-n < blockBytes || w.pos+int64(n) < w.end || !isZero(p[done+n:done+n+blockBytes])) {
			n += min(blockBytes, len(p)-done-n)
		}
		if err := w.write(p[done : done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

func (w *sparseWriter) write(p []byte) error {
	if w.real != w.pos {
		if _, err := w.f.Seek(w.pos, io.SeekStart); err != nil {
			return w.fail(err)
		}
		w.real = w.pos
	}
	n, err := w.f.Write(p)
	w.real += int64(n)
	w.pos += int64(n)
	if w.pos > w.end {
		w.used += min(int64(n), w.pos-w.end)
		w.end = w.pos
	}
	if err != nil {
		return w.fail(err)
	}
	return nil
}

func (w *sparseWriter) fail(err error) error {
	if w.err == nil {
		w.err = err
	}
	return err
}

// Seek implements io.Seeker for the two ways the ext4 writer uses.
func (w *sparseWriter) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
		w.pos = offset
	case io.SeekCurrent:
		w.pos += offset
	default:
		return 0, errors.New("seek from the end of a disk being written")
	}
	return w.pos, nil
}

// Read implements io.Reader; the ext4 writer reads back attributes it wrote.
func (w *sparseWriter) Read(p []byte) (int, error) {
	if _, err := w.f.Seek(w.pos, io.SeekStart); err != nil {
		return 0, w.fail(err)
	}
	n, err := w.f.Read(p)
	w.pos += int64(n)
	w.real = w.pos
	return n, err
}

func isZero(p []byte) bool {
	for len(p) >= 8 {
		if binary.LittleEndian.Uint64(p) != 0 {
			return false
		}
		p = p[8:]
	}
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
