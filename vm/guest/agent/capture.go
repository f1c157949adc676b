// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bufio"
	"errors"
	"io"
	"time"
)

// capture splits output into records as CRI's log format wants them and appends
// them, until the output or the spool ends. A line longer than a record is cut; what
// the output ends with, without a newline, is partial, as containerd logs it.
func capture(out io.Reader, stream uint8, add func(stream uint8, at time.Time, partial bool, data []byte) error) error {
	in := bufio.NewReaderSize(out, maxRecordBytes)
	for {
		line, err := in.ReadSlice('\n')
		switch {
		case err == nil:
			err = add(stream, time.Now(), false, line[:len(line)-1])
		case errors.Is(err, bufio.ErrBufferFull):
			err = add(stream, time.Now(), true, line)
		default:
			if len(line) > 0 {
				if addErr := add(stream, time.Now(), true, line); addErr != nil {
					return addErr
				}
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err != nil {
			return err
		}
	}
}
