// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	protocol "k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"
)

// statusTimeout bounds the sending of a command's outcome to a client that does not
// read.
const statusTimeout = 10 * time.Second

// The protocols whose error channel carries a status in JSON.
const (
	protocolV4Base64 = "v4." + wsstream.Base64ChannelWebSocketProtocol
	protocolV4       = protocol.StreamProtocolV4Name
	protocolV5       = protocol.StreamProtocolV5Name
)

// serveWebSocket serves the remote command protocol over WebSocket, versions 4 and 5 and
// the first, which clients without a library speak: run gets the client's streams, and its
// outcome is sent as the protocol says; doing is what an error has interrupted, as the
// kubelet puts it. The error is one of the connection; when it is not nil, run was not called.
func serveWebSocket(w http.ResponseWriter, r *http.Request, opts *remotecommand.Options, idleTimeout time.Duration, doing string, run func(context.Context, execStreams) error) error {
	readable := func(wanted bool) wsstream.ChannelType {
		if wanted {
			return wsstream.ReadChannel
		}
		return wsstream.IgnoreChannel
	}
	writable := func(wanted bool) wsstream.ChannelType {
		if wanted {
			return wsstream.WriteChannel
		}
		return wsstream.IgnoreChannel
	}
	channels := make([]wsstream.ChannelType, protocol.StreamResize+1)
	channels[protocol.StreamStdIn] = readable(opts.Stdin)
	channels[protocol.StreamStdOut] = writable(opts.Stdout)
	channels[protocol.StreamStdErr] = writable(opts.Stderr)
	channels[protocol.StreamErr] = wsstream.WriteChannel
	channels[protocol.StreamResize] = readable(opts.TTY)
	protocols := wsstream.NewDefaultChannelProtocols(channels) // no name, and those of version 1
	protocols[protocolV5] = wsstream.ChannelProtocolConfig{Binary: true, Channels: channels}
	protocols[protocolV4] = protocols[protocolV5]
	protocols[protocolV4Base64] = wsstream.ChannelProtocolConfig{Channels: channels}
	conn := wsstream.NewConn(protocols)
	conn.SetIdleTimeout(idleTimeout)
	negotiated, streams, err := conn.Open(w, r)
	if err != nil {
		return fmt.Errorf("upgrade to WebSocket: %w", err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer conn.Close()

	s := execStreams{tty: opts.TTY}
	first := io.Writer(streams[protocol.StreamErr])
	if opts.Stdin {
		s.stdin = streams[protocol.StreamStdIn]
	}
	if opts.Stderr {
		s.stderr = streams[protocol.StreamStdErr]
		first = s.stderr
	}
	if opts.Stdout {
		s.stdout = streams[protocol.StreamStdOut]
		first = s.stdout
	}
	// An empty message tells the client that it is connected.
	if _, err := first.Write(nil); err != nil {
		return fmt.Errorf("greet WebSocket client: %w", err)
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if opts.TTY {
		sizes := make(chan terminalSize)
		s.resize = sizes
		wg.Go(func() { decodeSizes(ctx, streams[protocol.StreamResize], sizes) })
	}

	status, err := encodeStatus(commandStatus(doing, run(ctx, s)), negotiated)
	if err != nil {
		return fmt.Errorf("encode command status: %w", err)
	}
	if len(status) == 0 {
		return nil
	}
	conn.SetWriteDeadline(statusTimeout)
	if _, err := streams[protocol.StreamErr].Write(status); err != nil && r.Context().Err() == nil {
		return fmt.Errorf("send command status: %w", err)
	}
	return nil
}

// decodeSizes passes on the terminal sizes that a client sends, until its stream or
// ctx ends, and closes sizes.
func decodeSizes(ctx context.Context, r io.Reader, sizes chan<- terminalSize) {
	defer close(sizes)
	decoder := json.NewDecoder(r)
	for {
		var size terminalSize
		if decoder.Decode(&size) != nil {
			return
		}
		select {
		case sizes <- size:
		case <-ctx.Done():
			return
		}
	}
}

// encodeStatus is what a protocol's error channel says of a status. Version 1 says nothing
// of a success, and of anything else the message alone.
func encodeStatus(status metav1.Status, negotiated string) ([]byte, error) {
	switch {
	case negotiated == protocolV5, negotiated == protocolV4, negotiated == protocolV4Base64:
		return json.Marshal(status)
	case status.Status == metav1.StatusSuccess:
		return nil, nil
	default:
		return []byte(status.Message), nil
	}
}

// commandStatus is a command's outcome as the protocol's error stream has it.
func commandStatus(doing string, err error) metav1.Status {
	if err == nil {
		return metav1.Status{Status: metav1.StatusSuccess}
	}
	var exit utilexec.ExitError
	if !errors.As(err, &exit) || !exit.Exited() {
		return apierrors.NewInternalError(fmt.Errorf("error %s container: %w", doing, err)).Status()
	}
	return metav1.Status{
		Status:  metav1.StatusFailure,
		Reason:  protocol.NonZeroExitCodeReason,
		Message: "command terminated with non-zero exit code: " + err.Error(),
		Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: protocol.ExitCodeCauseType, Message: fmt.Sprint(exit.ExitStatus())}}},
	}
}
