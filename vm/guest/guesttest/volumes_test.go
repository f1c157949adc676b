// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package guesttest_test

import (
	"archive/tar"
	"bytes"
	"testing"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/guesttest"
)

// putArchive sends an archive in messages of a few bytes.
func putArchive(t *testing.T, c *guest.Client, volume string, data []byte, chunk int) (*agentv1.PutArchiveResponse, error) {
	t.Helper()
	stream := c.Volumes.PutArchive(t.Context())
	err := stream.Send(&agentv1.PutArchiveRequest{Event: &agentv1.PutArchiveRequest_Start{Start: &agentv1.PutArchiveStart{Volume: volume}}})
	for len(data) > 0 && err == nil {
		n := min(chunk, len(data))
		err = stream.Send(&agentv1.PutArchiveRequest{Event: &agentv1.PutArchiveRequest_Data{Data: data[:n]}})
		data = data[n:]
	}
	// What a refusal says comes with the end of the call.
	res, err := stream.CloseAndReceive()
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

// A volume is filled by one archive, once, and measured.
func TestPutArchive(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "d/f", Size: 100_000, Mode: 0o600}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := putArchive(t, c, "v", b.Bytes(), 1000); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("into no volume: %v", err)
	}
	put := func() error {
		_, err := c.Volumes.PutVolume(t.Context(), connect.NewRequest(&agentv1.PutVolumeRequest{Name: "v"}))
		return err
	}
	if err := put(); err != nil {
		t.Fatal(err)
	}
	if _, err := putArchive(t, c, "v", b.Bytes()[:50_000], 1000); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("an archive that ends early: %v", err)
	}
	if _, err := putArchive(t, c, "v", bytes.Repeat([]byte{0}, 2*guest.MaxArchiveChunk), guest.MaxArchiveChunk+1); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("a message that is too large: %v", err)
	}
	res, err := putArchive(t, c, "v", b.Bytes(), 1000)
	if err != nil || res.GetBytes() != 100_000 || res.GetFiles() != 1 {
		t.Fatalf("%v, %v", res, err)
	}
	if _, err := putArchive(t, c, "v", b.Bytes(), 1000); connect.CodeOf(err) != connect.CodeAlreadyExists {
		t.Errorf("once more: %v", err)
	}
	if err := put(); err != nil {
		t.Errorf("the same volume again, after it was filled: %v", err)
	}
	stats, err := c.Agent.Stats(t.Context(), connect.NewRequest(&agentv1.StatsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	if v := stats.Msg.GetVolumes(); len(v) != 1 || v[0].GetName() != "v" || v[0].GetUsedBytes() < 100_000 || v[0].GetInodesUsed() != 2 {
		t.Errorf("volumes use %v", v)
	}
	if stats.Msg.GetScratchInodesTotal() == 0 {
		t.Error("the scratch disk has no inodes")
	}
}
