// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"testing"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1/agentv1connect"
)

type forwardStream = connect.BidiStream[agentv1.ForwardRequest, agentv1.ForwardResponse]

// forwarding is an agent that does nothing but to answer a forward.
type forwarding struct {
	agentv1connect.UnimplementedAgentServiceHandler
	answer func(stream *forwardStream) error
}

func (f forwarding) Forward(_ context.Context, stream *forwardStream) error {
	if _, err := stream.Receive(); err != nil {
		return err
	}
	return f.answer(stream)
}

// TestListenAddressOfOldAgent: an agent of before there were addresses tries its own port. That is no broken machine,
// whether the pod serves there or not; other answers are.
func TestListenAddressOfOldAgent(t *testing.T) {
	send := func(m *agentv1.ForwardResponse) func(*forwardStream) error {
		return func(stream *forwardStream) error { return stream.Send(m) }
	}
	for name, tt := range map[string]struct {
		answer    func(stream *forwardStream) error
		want, not error
	}{
		"nobody serves there": {func(*forwardStream) error {
			return connect.NewError(connect.CodeFailedPrecondition, errors.New("connection refused"))
		}, vm.ErrNotSupported, vm.ErrUnavailable},
		"the pod serves there": {send(&agentv1.ForwardResponse{Event: &agentv1.ForwardResponse_Connected{Connected: &agentv1.ForwardConnected{}}}), vm.ErrNotSupported, vm.ErrUnavailable},
		"an agent of today":    {send(&agentv1.ForwardResponse{Event: &agentv1.ForwardResponse_Listening{Listening: &agentv1.ForwardListening{}}}), nil, vm.ErrNotSupported},
		"data":                 {send(&agentv1.ForwardResponse{Event: &agentv1.ForwardResponse_Data{Data: []byte("x")}}), vm.ErrUnavailable, vm.ErrNotSupported},
	} {
		t.Run(name, func(t *testing.T) {
			c := serveMux(t, func(mux *http.ServeMux) {
				mux.Handle(agentv1connect.NewAgentServiceHandler(forwarding{answer: tt.answer}))
			})
			l, err := ListenAddress(t.Context(), c.Agent, netip.MustParseAddrPort("10.96.0.1:443"))
			if err == nil {
				_ = l.Close()
			}
			if !errors.Is(err, tt.want) || errors.Is(err, tt.not) {
				t.Errorf("it says %v, want %v", err, tt.want)
			}
		})
	}
}
