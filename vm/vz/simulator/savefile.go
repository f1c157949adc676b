// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package simulator

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// A saved machine is one file: a header of fixed size, then what the engine wrote. The
// framework's files are encrypted and authenticated; here the header says whom the file
// is for, and a hash shows damage.
const (
	saveMagic   = "FIRKNSAV"
	saveVersion = 1
	// headerBytes is where the engine's part begins.
	headerBytes = 64 << 10
)

// saveHeader is the JSON in a saved file's header.
type saveHeader struct {
	HostID  string `json:"hostID"`
	User    string `json:"user"`
	OSBuild string `json:"osBuild"`
	Shape   shape  `json:"shape"`
	// Bytes and SHA256 are of the engine's part.
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// errDamaged: not a saved machine, or not the one that was written.
var errDamaged = errors.New("the saved file is damaged")

// encodeHeader makes headerBytes bytes: magic, version and length of the JSON (big
// endian, four bytes each), the JSON, zeros.
func encodeHeader(h saveHeader) ([]byte, error) {
	text, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("encode header: %w", err)
	}
	if len(text) > headerBytes-16 {
		return nil, fmt.Errorf("encode header: %d bytes are too many", len(text))
	}
	b := make([]byte, headerBytes)
	copy(b, saveMagic)
	binary.BigEndian.PutUint32(b[8:], saveVersion)
	binary.BigEndian.PutUint32(b[12:], uint32(len(text))) //nolint:gosec // bounded above
	copy(b[16:], text)
	return b, nil
}

// decodeHeader is the inverse. Its input may be anything. The error is errDamaged.
func decodeHeader(b []byte) (saveHeader, error) {
	if len(b) != headerBytes || string(b[:8]) != saveMagic {
		return saveHeader{}, fmt.Errorf("%w: not a saved machine", errDamaged)
	}
	if v := binary.BigEndian.Uint32(b[8:]); v != saveVersion {
		return saveHeader{}, fmt.Errorf("%w: version %d, this is %d", errDamaged, v, saveVersion)
	}
	n := binary.BigEndian.Uint32(b[12:])
	if n > headerBytes-16 {
		return saveHeader{}, fmt.Errorf("%w: header of %d bytes", errDamaged, n)
	}
	text, rest := b[16:16+n], b[16+n:]
	if len(bytes.Trim(rest, "\x00")) > 0 {
		return saveHeader{}, fmt.Errorf("%w: text behind the header", errDamaged)
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	var h saveHeader
	if err := dec.Decode(&h); err != nil {
		return saveHeader{}, fmt.Errorf("%w: %w", errDamaged, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return saveHeader{}, fmt.Errorf("%w: text behind the header", errDamaged)
	}
	if h.Bytes < 0 {
		return saveHeader{}, fmt.Errorf("%w: %d bytes", errDamaged, h.Bytes)
	}
	return h, nil
}

// writeSave writes a new file with the engine's part by write. Until all of it is there,
// the header is zeros: who is killed meanwhile leaves a damaged file and not half a
// machine. A file that this fails on stays behind, as does the framework's, perhaps.
func writeSave(path string, h saveHeader, limit *int64, write func(*os.File) error) (err error) {
	// Reading too: the hash is taken from what was written.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Seek(headerBytes, io.SeekStart); err != nil {
		return err
	}
	if err := write(f); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if limit != nil && info.Size() > *limit {
		return errors.Join(errNoSpace, f.Truncate(*limit))
	}
	h.Bytes = max(info.Size()-headerBytes, 0)
	if h.SHA256, err = digest(f, h.Bytes); err != nil {
		return err
	}
	b, err := encodeHeader(h)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	return err
}

// openSave opens a saved file and reads its header. The file is positioned at the
// engine's part, which is not checked yet.
func openSave(path string) (_ *os.File, h saveHeader, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, h, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	b := make([]byte, headerBytes)
	if _, err := io.ReadFull(f, b); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("%w: it ends in the header", errDamaged)
		}
		return nil, h, err
	}
	h, err = decodeHeader(b)
	return f, h, err
}

// verifySave checks the engine's part: exactly the bytes that were written.
func verifySave(f *os.File, h saveHeader) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size()-headerBytes != h.Bytes {
		return fmt.Errorf("%w: %d bytes, want %d", errDamaged, info.Size()-headerBytes, h.Bytes)
	}
	sum, err := digest(f, h.Bytes)
	if err != nil {
		return err
	}
	if sum != h.SHA256 {
		return fmt.Errorf("%w: its hash is another", errDamaged)
	}
	return nil
}

// digest hashes the engine's part without moving f's position.
func digest(f *os.File, n int64) (string, error) {
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(f, headerBytes, n)); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
