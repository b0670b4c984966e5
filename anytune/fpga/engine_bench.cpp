// Drives the Verilated engine: beats in, beats out, either side stalled at random; AXI4-Lite registers.
#include "Vanytune_engine.h"
#include "verilated.h"
#ifdef TRACED
#include "verilated_vcd_c.h"
#endif
#include <cstdint>

namespace {
uint64_t time_now = 0;

struct Bench {
    VerilatedContext context;
    Vanytune_engine *top;
    uint64_t cycles = 0, random = 88172645463325252ull;
#ifdef TRACED
    VerilatedVcdC *trace = nullptr;
#endif
    void tick() {
        top->aclk = 1; top->eval();
#ifdef TRACED
        if (trace) trace->dump(2 * cycles);
#endif
        top->aclk = 0; top->eval();
#ifdef TRACED
        if (trace) trace->dump(2 * cycles + 1);
#endif
        cycles++;
    }
    bool chance(uint32_t of1024) {              // xorshift
        random ^= random << 13; random ^= random >> 7; random ^= random << 17;
        return (random >> 20 & 1023) < of1024;
    }
};
}  // namespace

double sc_time_stamp() { return time_now; }

extern "C" {
Bench *bench_open(const char *trace, uint64_t seed) {
    auto *b = new Bench;
    b->random ^= seed * 0x9E3779B97F4A7C15ull;
    if (!b->random) b->random = 1;
    b->top = new Vanytune_engine(&b->context, "top");
#ifdef TRACED
    if (*trace) {
        b->context.traceEverOn(true);
        b->trace = new VerilatedVcdC;
        b->top->trace(b->trace, 2);
        b->trace->open(trace);
    }
#endif
    auto *t = b->top;
    t->aclk = 0; t->aresetn = 0; t->s_axis_tvalid = 0; t->m_axis_tready = 0; t->s_axi_awvalid = 0; t->s_axi_wvalid = 0;
    t->s_axi_bready = 1; t->s_axi_arvalid = 0; t->s_axi_rready = 1; t->eval();
    for (int i = 0; i < 4; i++) b->tick();
    t->aresetn = 1; t->eval();
    return b;
}

void bench_close(Bench *b) {
#ifdef TRACED
    if (b->trace) { b->trace->close(); delete b->trace; }
#endif
    b->top->final(); delete b->top; delete b;
}

uint64_t bench_cycles(Bench *b) { return b->cycles; }

// Beats in until all are taken, beats out until `wanted` have come; ends[i]: tlast of beat i. in, out: how often of 1024
// cycles a side stalls. Returns the beats that came: fewer than wanted if the engine stood still for `patience` cycles.
int64_t bench_run(Bench *b, int64_t beats, const uint64_t *data, int64_t wanted, uint64_t *result, uint8_t *ends,
                  uint32_t stall_in, uint32_t stall_out, int64_t patience) {
    auto *t = b->top;
    int64_t sent = 0, got = 0, still = 0;
    bool offered = false;                       // what is offered stays until it is taken, as the protocol has it
    while ((sent < beats || got < wanted) && still < patience) {
        if (!offered) offered = sent < beats && !(stall_in && b->chance(stall_in));
        t->s_axis_tvalid = offered;
        if (offered) t->s_axis_tdata = data[sent];
        t->m_axis_tready = !(stall_out && b->chance(stall_out));
        t->eval();
        bool in = offered && t->s_axis_tready, out = t->m_axis_tvalid && t->m_axis_tready;
        if (out && got < wanted) { result[got] = t->m_axis_tdata; ends[got] = t->m_axis_tlast; }
        got += out; sent += in; still = in || out ? 0 : still + 1;
        if (in) offered = false;
        b->tick();
    }
    t->s_axis_tvalid = 0; t->m_axis_tready = 0; t->eval();
    return sent < beats ? -1 : got;
}

uint32_t bench_read(Bench *b, uint32_t address) {
    auto *t = b->top;
    t->s_axi_araddr = address; t->s_axi_arvalid = 1; t->eval();
    while (!t->s_axi_arready) b->tick();
    b->tick(); t->s_axi_arvalid = 0; t->eval();
    while (!t->s_axi_rvalid) b->tick();
    uint32_t value = t->s_axi_rdata;
    b->tick();
    return value;
}

void bench_write(Bench *b, uint32_t address, uint32_t value) {
    auto *t = b->top;
    t->s_axi_awaddr = address; t->s_axi_wdata = value; t->s_axi_wstrb = 15; t->s_axi_awvalid = t->s_axi_wvalid = 1; t->eval();
    while (!(t->s_axi_awready && t->s_axi_wready)) b->tick();
    b->tick(); t->s_axi_awvalid = t->s_axi_wvalid = 0; t->eval();
    while (!t->s_axi_bvalid) b->tick();
    b->tick();
}
}
