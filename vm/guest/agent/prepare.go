// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// maxPrepared bounds the containers that wait: one an image slot is what a host needs.
const maxPrepared = 8

// PrepareContainer implements agentv1connect.ContainerServiceHandler.
func (cs *containers) PrepareContainer(ctx context.Context, req *connect.Request[agentv1.PrepareContainerRequest]) (*connect.Response[agentv1.PrepareContainerResponse], error) {
	m := req.Msg
	if err := checkLayers("", m.GetLowerLayers()); err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	cs.preparing.Lock()
	defer cs.preparing.Unlock()
	if cs.runtime.Prepared() >= maxPrepared {
		return nil, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("%d containers wait already", maxPrepared))
	}
	const doing = "prepare container"
	ctx = context.WithoutCancel(ctx) // what is half made is worth nothing
	lower, err := cs.system.MountImage(ctx, int(m.GetImageSlot()))
	if err != nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("%s: mount image slot %d: %w", doing, m.GetImageSlot(), err))
	}
	// It keeps its layers from being written for as long as the machine lives: whoever takes
	// it reads them as well.
	cs.prepares++
	owner := "prepared:" + strconv.Itoa(cs.prepares)
	_, dirs, err := cs.layers.acquire(owner, "", m.GetLowerLayers())
	if err != nil {
		return nil, err
	}
	if err := cs.runtime.Prepare(ctx, PreparedSpec{Lower: lower, LowerLayers: dirs}); err != nil {
		cs.layers.release(owner)
		if start := (*StartError)(nil); errors.As(err, &start) {
			return nil, internal(doing, err)
		}
		return nil, runtimeError(doing, err)
	}
	return connect.NewResponse(&agentv1.PrepareContainerResponse{}), nil
}
