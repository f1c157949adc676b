// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"syscall"
)

// sparseBlock is the unit of a sparse digest: the block size of ext4 and of every
// host file system we know to have holes.
const sparseBlock = 4096

// SparseFile is what a sparse digest reads: an *os.File, or one that is read with care.
type SparseFile interface {
	io.ReaderAt
	io.Seeker
}

// SparseDigest is the digest of a sparse file's first size bytes, in hexadecimal:
// the SHA-256 over, for each 4 KiB block that is not all zero, its offset as 8 bytes
// big-endian and its content, and at the end the size as 8 bytes big-endian. It does
// not depend on which zeros the host's file system keeps as holes. It moves the
// file's offset.
func SparseDigest(f SparseFile, size int64) (string, error) {
	h := sha256.New()
	var word [8]byte
	buf := make([]byte, 256*sparseBlock)
	zero := make([]byte, sparseBlock)
	for off := int64(0); off < size; {
		off = nextData(f, off, size)
		if off >= size {
			break
		}
		n, err := f.ReadAt(buf[:min(int64(len(buf)), size-off)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return "", fmt.Errorf("sparse digest: %w", err)
		}
		if n == 0 {
			return "", fmt.Errorf("sparse digest: file ends at %d of %d bytes", off, size)
		}
		for i := 0; i < n; i += sparseBlock {
			block := buf[i:min(i+sparseBlock, n)]
			if bytes.Equal(block, zero[:len(block)]) {
				continue
			}
			binary.BigEndian.PutUint64(word[:], uint64(off)+uint64(i))
			h.Write(word[:])
			h.Write(block)
		}
		off += int64(n)
	}
	binary.BigEndian.PutUint64(word[:], uint64(size))
	h.Write(word[:])
	return hex.EncodeToString(h.Sum(nil)), nil
}

// nextData is the offset, a multiple of the block size, of the first block at or
// after off that may hold data; size when there is none. Where the file system
// cannot tell, everything is data.
func nextData(f io.Seeker, off, size int64) int64 {
	next, err := f.Seek(off, seekData)
	switch {
	case errors.Is(err, syscall.ENXIO): // only a hole remains
		return size
	case err != nil || next < off:
		return off
	}
	return max(off, next-next%sparseBlock)
}
