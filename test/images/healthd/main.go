// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Command healthd is a program for containers of tests: what its probes are told follows
// files that a story makes and removes. It is built into an image by the stories.
//
// HTTP on port 8080: GET /NAME is 200 when there is a file /tmp/NAME, else 503.
// gRPC on port 9090: the standard health service; service NAME is SERVING likewise.
package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "healthd:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	l, err := net.Listen("tcp", ":9090")
	if err != nil {
		return err
	}
	grpcServer := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(grpcServer, health{})
	httpServer := &http.Server{Addr: ":8080", ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !there(r.URL.Path) {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})}
	ended := make(chan error, 2)
	go func() { ended <- grpcServer.Serve(l) }()
	go func() { ended <- httpServer.ListenAndServe() }()
	fmt.Println("healthd serves")
	select {
	case err = <-ended:
	case <-ctx.Done():
	}
	grpcServer.Stop()
	_ = httpServer.Close()
	return err
}

// there reports whether the file of a name is.
func there(name string) bool {
	_, err := os.Stat(filepath.Join("/tmp", filepath.Base(name)))
	return err == nil
}

type health struct {
	grpc_health_v1.UnimplementedHealthServer
}

func (health) Check(_ context.Context, r *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	status := grpc_health_v1.HealthCheckResponse_NOT_SERVING
	if there(r.GetService()) {
		status = grpc_health_v1.HealthCheckResponse_SERVING
	}
	return &grpc_health_v1.HealthCheckResponse{Status: status}, nil
}
