// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package podlog

import (
	"context"
	"errors"

	"github.com/vk-firkin/vk-firkin/provider"
)

// Tail returns the end of what is on disk of the container's output: at most so many lines
// and bytes, both streams as the container wrote them. Nothing when there is none.
func (s *Store) Tail(ctx context.Context, c provider.ContainerRef, lines int64, bytes int) ([]byte, error) {
	end := &ring{limit: bytes}
	err := s.Read(ctx, c, ReadOptions{Tail: &lines}, end)
	if errors.Is(err, ErrNoLog) {
		return nil, nil
	}
	return end.data, err
}

// ring keeps the last bytes that are written to it.
type ring struct {
	limit int
	data  []byte
}

func (r *ring) Write(p []byte) (int, error) {
	r.data = append(r.data, p...)
	if n := len(r.data) - r.limit; n > 0 {
		r.data = append(r.data[:0], r.data[n:]...)
	}
	return len(p), nil
}
